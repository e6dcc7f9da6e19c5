/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one hash of the snapshot's tables. It is part of the format: packers call it through the binding, so it must
 * never change without a new IDM_FORMAT. Not keyed: who writes a snapshot is trusted, requests only probe, and the
 * loader bounds how long a probe may be.
 */
#include <string.h>

#include "idmesh/engine.h"

#define MULTIPLIER 0x9e3779b97f4a7c15ull

static uint64_t mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t read_word(const unsigned char *p, size_t size)
{
	uint64_t word = 0;

	memcpy(&word, p, size);
	return word;
}

uint64_t idm_hash64(uint64_t seed, const void *data, size_t size)
{
	const unsigned char *p = data;
	uint64_t hash = mix(seed ^ 0xa0761d6478bd642full, (uint64_t)size ^ MULTIPLIER);

	for (; size > 8; p += 8, size -= 8)
		hash = mix(hash ^ read_word(p, 8), MULTIPLIER);
	if (size)
		hash = mix(hash ^ read_word(p, size), MULTIPLIER ^ size);
	hash = mix(hash ^ 0xe7037ed1a0b428dbull, MULTIPLIER);
	return hash ? hash : 1;
}
