// SPDX-License-Identifier: Apache-2.0
// One build's memory. Running out ends the build by a long jump: nothing half made is ever looked at again.
#include "pool.h"

#include <stdlib.h>
#include <string.h>

// Blocks keep the alignment malloc gives.
#define HEAD ((sizeof(struct pool_block) + 15) & ~(size_t)15)

void pool_init(struct pool *pool, size_t limit, jmp_buf *fail)
{
	pool->head.next = pool->head.prev = &pool->head;
	pool->used = 0;
	pool->limit = limit;
	pool->fail = fail;
}

void pool_deinit(struct pool *pool)
{
	struct pool_block *block = pool->head.next;

	while (block != &pool->head) {
		struct pool_block *next = block->next;

		free(block);
		block = next;
	}
	pool->head.next = pool->head.prev = &pool->head;
}

void *pool_alloc(struct pool *pool, size_t size)
{
	struct pool_block *block;

	if (size > pool->limit - pool->used)
		longjmp(*pool->fail, 1);
	block = calloc(1, HEAD + size);
	if (!block)
		longjmp(*pool->fail, 2);
	pool->used += size;
	block->next = pool->head.next;
	block->prev = &pool->head;
	block->next->prev = block;
	pool->head.next = block;
	return (char *)block + HEAD;
}

void pool_free(struct pool *pool, void *ptr, size_t size)
{
	struct pool_block *block;

	if (!ptr)
		return;
	block = (struct pool_block *)((char *)ptr - HEAD);
	block->prev->next = block->next;
	block->next->prev = block->prev;
	pool->used -= size;
	free(block);
}

void *pool_room(struct pool *pool, void *array, size_t count, size_t *room, size_t item_size)
{
	size_t more = *room ? *room * 2 : 16;
	void *grown;

	if (count < *room)
		return array;
	grown = pool_alloc(pool, more * item_size);
	if (count)
		memcpy(grown, array, count * item_size);
	pool_free(pool, array, *room * item_size);
	*room = more;
	return grown;
}
