/* SPDX-License-Identifier: Apache-2.0 */
/* A text being read from its start or, backward, from its end. */
#ifndef IDMESH_ENGINE_CURSOR_H
#define IDMESH_ENGINE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

struct cursor {
	const uint8_t *text;
	size_t size;
	size_t at; /* bytes read */
	bool backward;
};

/* The byte that is read when `at` bytes were. */
static ALWAYS_INLINE uint8_t cursor_byte(const struct cursor *c, size_t at)
{
	return c->backward ? c->text[c->size - 1 - at] : c->text[at];
}

/* The next size bytes in the text's order; they must be there. */
static ALWAYS_INLINE const uint8_t *cursor_ahead(const struct cursor *c, size_t size)
{
	return c->backward ? c->text + c->size - c->at - size : c->text + c->at;
}

#endif
