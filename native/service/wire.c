// SPDX-License-Identifier: Apache-2.0
// Reading and writing protocol buffers. Every length is checked against what is left before it is used.
#include <errno.h>
#include <string.h>

#include "wire.h"

static bool read_varint(struct wire_cursor *cursor, uint64_t *ret)
{
	uint64_t value = 0;

	for (unsigned int shift = 0; shift < 64 && cursor->next < cursor->end; shift += 7) {
		uint8_t byte = *cursor->next++;

		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*ret = value;
			return true;
		}
	}
	return false;
}

static bool read_fixed(struct wire_cursor *cursor, size_t size, uint64_t *ret)
{
	if ((size_t)(cursor->end - cursor->next) < size)
		return false;
	*ret = 0;
	for (size_t i = size; i-- > 0;)
		*ret = *ret << 8 | cursor->next[i];
	cursor->next += size;
	return true;
}

static bool read_bytes(struct wire_cursor *cursor, struct idm_bytes *ret)
{
	uint64_t size;

	if (!read_varint(cursor, &size) || size > (uint64_t)(cursor->end - cursor->next))
		return false;
	*ret = (struct idm_bytes){ (const char *)cursor->next, size };
	cursor->next += size;
	return true;
}

int wire_next(struct wire_cursor *cursor, struct wire_field *ret)
{
	uint64_t tag;
	bool fine;

	if (cursor->next == cursor->end)
		return 0;
	if (!read_varint(cursor, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
		return -EINVAL;
	ret->number = tag >> 3;
	ret->type = tag & 7;
	switch (ret->type) {
	case WIRE_VARINT:
		fine = read_varint(cursor, &ret->value);
		break;
	case WIRE_FIXED64:
		fine = read_fixed(cursor, 8, &ret->value);
		break;
	case WIRE_FIXED32:
		fine = read_fixed(cursor, 4, &ret->value);
		break;
	case WIRE_BYTES:
		fine = read_bytes(cursor, &ret->bytes);
		break;
	default: // groups: no message of ours has any
		fine = false;
	}
	return fine ? 1 : -EINVAL;
}

void wire_put(struct wire_writer *writer, const void *data, size_t size)
{
	if (writer->failed || (size_t)(writer->start - writer->floor) < size) {
		writer->failed = true;
		return;
	}
	writer->start -= size;
	if (size)
		memcpy(writer->start, data, size);
}

void wire_put_varint(struct wire_writer *writer, uint64_t value)
{
	uint8_t bytes[10];
	size_t size = 0;

	do {
		bytes[size++] = (value & 0x7f) | (value > 0x7f ? 0x80 : 0);
		value >>= 7;
	} while (value);
	wire_put(writer, bytes, size);
}

void wire_close(struct wire_writer *writer, uint32_t number, const uint8_t *end)
{
	wire_put_varint(writer, end - writer->start);
	wire_put_varint(writer, (uint64_t)number << 3 | WIRE_BYTES);
}

void wire_put_bytes(struct wire_writer *writer, uint32_t number, struct idm_bytes value)
{
	const uint8_t *end = writer->start;

	wire_put(writer, value.ptr, value.size);
	wire_close(writer, number, end);
}

void wire_put_number(struct wire_writer *writer, uint32_t number, uint64_t value)
{
	wire_put_varint(writer, value);
	wire_put_varint(writer, (uint64_t)number << 3 | WIRE_VARINT);
}
