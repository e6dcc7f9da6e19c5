/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot's ranges of addresses as the prefixes of a trie. */
#ifndef IDMESH_DATAPATH_PREFIXES_H
#define IDMESH_DATAPATH_PREFIXES_H

#include "engine/internal.h"
#include "rows.h"

/* Adds rows of struct idm_prefix_key and struct idm_prefix_row; the caller sorts. */
int idm_prefixes_add(const struct idm_identities *table, struct idm_rows *ret);

#endif
