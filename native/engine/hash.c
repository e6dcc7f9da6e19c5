/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one hash of the snapshot's tables. It is part of the format: packers call it through the binding, so it must
 * never change without a new IDM_FORMAT. Not keyed: who writes a snapshot is trusted, requests only probe, and the
 * loader bounds how long a probe may be.
 */
#include <string.h>

#include "hash.h"
#include "idmesh/engine.h"

#define MULTIPLIER 0x9e3779b97f4a7c15ull

static uint64_t mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_start(uint64_t seed, size_t size)
{
	return mix(seed ^ 0xa0761d6478bd642full, (uint64_t)size ^ MULTIPLIER);
}

// tail: the last one to eight bytes as a number, count of them; 0 for an empty value.
static uint64_t hash_end(uint64_t hash, uint64_t tail, size_t count)
{
	if (count)
		hash = mix(hash ^ tail, MULTIPLIER ^ count);
	hash = mix(hash ^ 0xe7037ed1a0b428dbull, MULTIPLIER);
	return hash ? hash : 1;
}

uint64_t idm_hash64(uint64_t seed, const void *data, size_t size)
{
	const unsigned char *p = data;
	uint64_t hash = hash_start(seed, size), word = 0;

	for (; size > 8; p += 8, size -= 8) {
		memcpy(&word, p, 8);
		hash = mix(hash ^ word, MULTIPLIER);
	}
	word = 0;
	if (size)
		memcpy(&word, p, size);
	return hash_end(hash, word, size);
}

void idm_hasher_init(struct idm_hasher *hasher, uint64_t seed, size_t size)
{
	*hasher = (struct idm_hasher){.hash = hash_start(seed, size)};
}

void idm_hasher_add(struct idm_hasher *hasher, const char *data, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (hasher->fill == 8) {
			hasher->hash = mix(hasher->hash ^ hasher->word, MULTIPLIER);
			hasher->word = 0;
			hasher->fill = 0;
		}
		hasher->word |= (uint64_t)(unsigned char)data[i] << (8 * hasher->fill++);
	}
}

uint64_t idm_hasher_finish(struct idm_hasher *hasher)
{
	return hash_end(hasher->hash, hasher->word, hasher->fill);
}
