/* SPDX-License-Identifier: Apache-2.0 */
/* Header lines seen as headers, without copying. */
#include "headers.h"

#include "hash.h"

int idm_header_name_order(struct idm_bytes any_case, struct idm_bytes lower)
{
	size_t size = any_case.size < lower.size ? any_case.size : lower.size;

	for (size_t i = 0; i < size; i++) {
		unsigned char a = (unsigned char)idm_lower(any_case.ptr[i]);
		unsigned char b = (unsigned char)lower.ptr[i];

		if (a != b)
			return a < b ? -1 : 1;
	}
	return (any_case.size > lower.size) - (any_case.size < lower.size);
}

#define EVERY_BYTE 0x0101010101010101ull

// Eight characters at once: bit 5 is set in those from A to Z, others stay.
static uint64_t lower_word(uint64_t word)
{
	uint64_t seven = word & 0x7f * EVERY_BYTE;
	uint64_t from_a = seven + (0x80 - 'A') * EVERY_BYTE, above_z = seven + (0x7f - 'Z') * EVERY_BYTE;
	uint64_t upper = ~word & (from_a ^ above_z) & 0x80 * EVERY_BYTE;

	return word | upper >> 2;
}

static bool same_word(const char *a, const char *b)
{
	uint64_t left, right;

	memcpy(&left, a, sizeof(left));
	memcpy(&right, b, sizeof(right));
	return lower_word(left) == lower_word(right);
}

// A request may carry a hundred lines, and each may be compared with each.
static bool same_name(struct idm_bytes a, struct idm_bytes b)
{
	size_t i = 0;

	if (a.size != b.size)
		return false;
	for (; a.size - i >= 8; i += 8)
		if (!same_word(a.ptr + i, b.ptr + i))
			return false;
	// The rest of a long name again with what precedes it.
	if (i && i < a.size)
		return same_word(a.ptr + a.size - 8, b.ptr + a.size - 8);
	for (; i < a.size; i++)
		if (idm_lower(a.ptr[i]) != idm_lower(b.ptr[i]))
			return false;
	return true;
}

static bool is_named(const struct idm_header_line *line, struct idm_bytes name)
{
	return same_name(line->name, name);
}

bool idm_header_present(const struct idm_http *http, struct idm_bytes name)
{
	for (size_t i = 0; i < http->header_count; i++)
		if (is_named(&http->headers[i], name))
			return true;
	return false;
}

bool idm_header_equals(const struct idm_http *http, struct idm_bytes name, struct idm_bytes value)
{
	unsigned char difference = 0;
	size_t at = 0;
	bool found = false;

	for (size_t i = 0; i < http->header_count; i++) {
		struct idm_bytes piece = http->headers[i].value;

		if (!is_named(&http->headers[i], name))
			continue;
		if (found) {
			if (at == value.size)
				return false;
			difference |= (unsigned char)(value.ptr[at++] ^ ',');
		}
		found = true;
		if (piece.size > value.size - at)
			return false;
		for (size_t j = 0; j < piece.size; j++)
			difference |= (unsigned char)(value.ptr[at++] ^ piece.ptr[j]);
	}
	return found && at == value.size && !difference;
}

bool idm_header_is_first(const struct idm_http *http, size_t index)
{
	for (size_t i = 0; i < index; i++)
		if (same_name(http->headers[i].name, http->headers[index].name))
			return false;
	return true;
}

uint64_t idm_header_hash(const struct idm_http *http, size_t first, uint64_t seed)
{
	struct idm_bytes name = http->headers[first].name;
	size_t size = http->headers[first].value.size, lines = 1;
	struct idm_hasher hasher;

	for (size_t i = first + 1; i < http->header_count; i++) {
		if (!same_name(http->headers[i].name, name))
			continue;
		size += http->headers[i].value.size + 1;
		lines++;
	}
	if (lines == 1)
		return idm_hash64(seed, http->headers[first].value.ptr, size);
	idm_hasher_init(&hasher, seed, size);
	idm_hasher_add(&hasher, http->headers[first].value.ptr, http->headers[first].value.size);
	for (size_t i = first + 1; i < http->header_count; i++) {
		if (!same_name(http->headers[i].name, name))
			continue;
		idm_hasher_add(&hasher, ",", 1);
		idm_hasher_add(&hasher, http->headers[i].value.ptr, http->headers[i].value.size);
	}
	return idm_hasher_finish(&hasher);
}
