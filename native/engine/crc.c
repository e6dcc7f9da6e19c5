/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32 (the reflected polynomial 0xedb88320 of zlib, RFC 1952), eight bytes a step. It finds damage, not malice:
 * what a snapshot says is checked item by item afterwards.
 */
#include <string.h>

#include "crc.h"

#define SLICES 8

static uint32_t slices[SLICES][256];

// Before main or when the library is loaded, so that readers never race to fill it.
__attribute__((constructor)) static void fill_slices(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
		slices[0][i] = crc;
	}
	for (int slice = 1; slice < SLICES; slice++)
		for (uint32_t i = 0; i < 256; i++)
			slices[slice][i] = (slices[slice - 1][i] >> 8) ^ slices[0][slices[slice - 1][i] & 0xff];
}

uint32_t idm_crc32(uint32_t crc, const void *data, size_t size)
{
	const uint8_t *p = data;

	crc = ~crc;
	for (; size >= SLICES; p += SLICES, size -= SLICES) {
		uint64_t word;

		memcpy(&word, p, sizeof(word));
		word ^= crc;
		crc = 0;
		for (int i = 0; i < SLICES; i++)
			crc ^= slices[SLICES - 1 - i][(word >> (8 * i)) & 0xff];
	}
	for (; size; p++, size--)
		crc = (crc >> 8) ^ slices[0][(crc ^ *p) & 0xff];
	return ~crc;
}
