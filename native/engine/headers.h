/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Header lines seen as headers: names in any case, and several lines of one name count as one value joined by ","
 * (as Envoy's getAllOfHeaderAsString and RFC 9110 section 5.2 have it). Nothing is copied together.
 */
#ifndef IDMESH_ENGINE_HEADERS_H
#define IDMESH_ENGINE_HEADERS_H

#include "internal.h"

/* Compare a name of any case with one in lower case: as memcmp, the shorter first where one begins the other. */
int idm_header_name_order(struct idm_bytes any_case, struct idm_bytes lower);
bool idm_header_present(const struct idm_http *http, struct idm_bytes name);
/* Takes as long for every wrong value of the right size: the value may be a secret. */
bool idm_header_equals(const struct idm_http *http, struct idm_bytes name, struct idm_bytes value);
/* True if no line before this one has its name. */
bool idm_header_is_first(const struct idm_http *http, size_t index);
/* idm_hash64() of the joined value, starting at the header's first line. */
uint64_t idm_header_hash(const struct idm_http *http, size_t first, uint64_t seed);

#endif
