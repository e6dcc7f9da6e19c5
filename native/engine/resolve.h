/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_ENGINE_RESOLVE_H
#define IDMESH_ENGINE_RESOLVE_H

#include "internal.h"

/* The item of an exact address (16 bytes, IPv4 padded with zeros), or NULL. Reads host_probe_max slots at most. */
const struct idm_host *idm_host_find(const struct idm_identities *table, uint8_t family, const uint8_t *address);

#endif
