/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_AUTOMATA_LITERALS_H
#define IDMESH_AUTOMATA_LITERALS_H

#include "emit.h"

/* Write the patterns that are literals, a list or a hash, and fill in the body. Returns their worst cost, ps. */
uint64_t literals_write(struct blob *blob, const struct pattern *const *patterns, uint32_t count);

#endif
