/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32 (the reflected polynomial 0xedb88320 of zlib, RFC 1952). It finds damage, not malice: what a snapshot says is
 * checked item by item afterwards.
 *
 * Where the processor multiplies without carries, 64 bytes a step are folded: what stands D bits before others counts
 * as much as its product with x^D. What is left of 16 bytes, and everything elsewhere, goes through tables.
 *
 * Source: Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction (Intel, 2009)
 */
#include <stdbool.h>
#include <string.h>

#include "idmesh/engine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FOLD 1
#endif

#define POLYNOMIAL 0xedb88320u
#define SLICES 8

static uint32_t slices[SLICES][256];

static uint32_t times_x(uint32_t crc)
{
	return (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
}

static void fill_slices(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = times_x(crc);
		slices[0][i] = crc;
	}
	for (int slice = 1; slice < SLICES; slice++)
		for (uint32_t i = 0; i < 256; i++)
			slices[slice][i] = (slices[slice - 1][i] >> 8) ^ slices[0][slices[slice - 1][i] & 0xff];
}

static uint32_t by_tables(uint32_t crc, const uint8_t *p, size_t size)
{
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
	return crc;
}

#ifdef FOLD
#define STEP 64

static bool can_fold;
static uint64_t far[2], near[2]; // of the first and the last eight bytes of 16 that move by STEP, or by 16

static inline __m128i at(const void *p)
{
	return _mm_loadu_si128(p);
}

// x^bits, as a factor of reflected numbers, which stand one bit too low.
static uint64_t power(unsigned int bits)
{
	uint32_t crc = 0x80000000u;

	while (bits--)
		crc = times_x(crc);
	return (uint64_t)crc << 1;
}

__attribute__((target("pclmul"))) static inline __m128i fold(__m128i held, __m128i factors, __m128i next)
{
	__m128i first = _mm_clmulepi64_si128(held, factors, 0x00);
	__m128i last = _mm_clmulepi64_si128(held, factors, 0x11);

	return _mm_xor_si128(next, _mm_xor_si128(first, last));
}

// size: a multiple of 16, at least STEP.
__attribute__((target("pclmul"))) static uint32_t by_folding(uint32_t crc, const uint8_t *p, size_t size)
{
	__m128i factors = at(far);
	__m128i held[STEP / 16];
	uint8_t left[16];

	for (int i = 0; i < STEP / 16; i++)
		held[i] = at(p + 16 * i);
	held[0] = _mm_xor_si128(held[0], _mm_cvtsi32_si128((int)crc));
	for (p += STEP, size -= STEP; size >= STEP; p += STEP, size -= STEP)
		for (int i = 0; i < STEP / 16; i++)
			held[i] = fold(held[i], factors, at(p + 16 * i));
	factors = at(near);
	for (int i = 1; i < STEP / 16; i++)
		held[0] = fold(held[0], factors, held[i]);
	for (; size; p += 16, size -= 16)
		held[0] = fold(held[0], factors, at(p));
	_mm_storeu_si128((__m128i *)left, held[0]);
	return by_tables(0, left, sizeof(left));
}

// What is written and what is read go through the same code: a processor that folds otherwise must not be believed.
static void prepare_folding(void)
{
	const size_t size = sizeof(slices[0]);
	const uint8_t *sample = (const uint8_t *)slices[0];

	far[0] = power(8 * STEP + 32);
	far[1] = power(8 * STEP - 32);
	near[0] = power(128 + 32);
	near[1] = power(128 - 32);
	__builtin_cpu_init();
	can_fold = __builtin_cpu_supports("pclmul") && by_folding(1, sample, size) == by_tables(1, sample, size) &&
		   by_folding(2, sample, STEP + 16) == by_tables(2, sample, STEP + 16);
}
#endif

// Before main or when the library is loaded, so that readers never race to fill anything.
__attribute__((constructor)) static void prepare(void)
{
	fill_slices();
#ifdef FOLD
	prepare_folding();
#endif
}

uint32_t idm_crc32(uint32_t crc, const void *data, size_t size)
{
	const uint8_t *p = data;

	crc = ~crc;
#ifdef FOLD
	if (can_fold && size >= STEP) {
		size_t whole = size - size % 16;

		crc = by_folding(crc, p, whole);
		p += whole;
		size -= whole;
	}
#endif
	return ~by_tables(crc, p, size);
}
