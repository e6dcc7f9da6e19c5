/* SPDX-License-Identifier: Apache-2.0 */
/* idm_hash64() of a value that lies in pieces. */
#ifndef IDMESH_ENGINE_HASH_H
#define IDMESH_ENGINE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct idm_hasher {
	uint64_t hash;
	uint64_t word; // bytes not yet mixed in
	uint32_t fill; // how many
};

/* size: of all pieces together. */
void idm_hasher_init(struct idm_hasher *hasher, uint64_t seed, size_t size);
void idm_hasher_add(struct idm_hasher *hasher, const char *data, size_t size);
uint64_t idm_hasher_finish(struct idm_hasher *hasher);

#endif
