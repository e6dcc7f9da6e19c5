/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of one build: blocks that are all released together, and growing arrays made of them. */
#ifndef IDMESH_AUTOMATA_POOL_H
#define IDMESH_AUTOMATA_POOL_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

struct pool_block {
	struct pool_block *next;
	struct pool_block *prev;
};

/* fail is jumped to when there is no memory, or more is wanted than limit. */
struct pool {
	struct pool_block head;
	size_t used;
	size_t limit;
	jmp_buf *fail;
};

void pool_init(struct pool *pool, size_t limit, jmp_buf *fail);
void pool_deinit(struct pool *pool);
/* Zeroed. */
void *pool_alloc(struct pool *pool, size_t size);
void pool_free(struct pool *pool, void *ptr, size_t size);
/* Make room for one more item; returns the (perhaps moved) array. */
void *pool_room(struct pool *pool, void *array, size_t count, size_t *room, size_t item_size);

/* A growing array: VEC(uint32_t) ids; *VEC_ADD(pool, ids) = 3; */
#define VEC(type) struct { type *at; size_t count; size_t room; }
#define VEC_ADD(pool, vec) \
	((vec).at = pool_room(pool, (vec).at, (vec).count, &(vec).room, sizeof(*(vec).at)), &(vec).at[(vec).count++])
#define VEC_DEINIT(pool, vec) pool_free(pool, (vec).at, (vec).room * sizeof(*(vec).at))

#endif
