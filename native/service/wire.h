/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Protocol buffers at their smallest: a cursor over the fields of one message, and a writer that fills its
 * buffer from the end, so that the length of a message is known when its head is written.
 *
 * Source: protobuf encoding, protobuf.dev/programming-guides/encoding.
 */
#ifndef IDMESH_SERVICE_WIRE_H
#define IDMESH_SERVICE_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "idmesh/engine.h"

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

#define BYTES(text) ((struct idm_bytes){ (text), sizeof(text) - 1 })

struct wire_cursor {
	const uint8_t *next;
	const uint8_t *end;
};

struct wire_field {
	uint32_t number;
	uint32_t type; /* enum wire_type */
	uint64_t value; /* varint and fixed */
	struct idm_bytes bytes;
};

static inline struct wire_cursor wire_open(struct idm_bytes message)
{
	const uint8_t *start = (const uint8_t *)message.ptr;

	return (struct wire_cursor){ start, start ? start + message.size : start };
}

/**
 * Read the next field.
 * @return 1, 0 at the end, -EINVAL where the bytes are no message.
 */
int wire_next(struct wire_cursor *cursor, struct wire_field *ret);

/* True if the field is this number and carries bytes. */
static inline bool wire_is(const struct wire_field *field, uint32_t number)
{
	return field->number == number && field->type == WIRE_BYTES;
}

/* Writes backwards from `start` down to `floor`; `failed` once it did not fit. */
struct wire_writer {
	uint8_t *floor;
	uint8_t *start;
	bool failed;
};

void wire_put(struct wire_writer *writer, const void *data, size_t size);
void wire_put_varint(struct wire_writer *writer, uint64_t value);
/* Head of a length-delimited field whose content was written since `end` (the start at that time). */
void wire_close(struct wire_writer *writer, uint32_t number, const uint8_t *end);
void wire_put_bytes(struct wire_writer *writer, uint32_t number, struct idm_bytes value);
void wire_put_number(struct wire_writer *writer, uint32_t number, uint64_t value);

#endif
