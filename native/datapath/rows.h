/* SPDX-License-Identifier: Apache-2.0 */
/* A table as sorted rows of key and value: what a hash or a trie in the kernel holds, or shall hold. */
#ifndef IDMESH_DATAPATH_ROWS_H
#define IDMESH_DATAPATH_ROWS_H

#include <stdbool.h>
#include <stdint.h>

struct idm_rows {
	uint32_t refs;
	uint32_t key_size, value_size, size; // size: of both together
	uint32_t count, room;
	uint8_t *data;
};

struct idm_rows *idm_rows_create(uint32_t key_size, uint32_t value_size);
struct idm_rows *idm_rows_ref(struct idm_rows *rows);
void idm_rows_unref(struct idm_rows *rows);

static inline uint8_t *idm_row(const struct idm_rows *rows, uint32_t index)
{
	return rows->data + (uint64_t)index * rows->size;
}

/* In any order; idm_rows_sort() before anything is looked for. */
int idm_rows_add(struct idm_rows *rows, const void *key, const void *value);
void idm_rows_sort(struct idm_rows *rows);
/* The row's value, or NULL. */
void *idm_rows_find(const struct idm_rows *rows, const void *key);

/**
 * Bring a kernel map from what it holds to what it shall hold: deletions first, so that no more rows than the greater
 * of both ever stand in it.
 * @param[in,out] written, deleted Counted up.
 */
int idm_rows_apply(int map, const struct idm_rows *before, const struct idm_rows *after, uint32_t *written,
		   uint32_t *deleted);
/* All rows of a kernel map. */
int idm_rows_read(int map, uint32_t key_size, uint32_t value_size, struct idm_rows **ret);
/* All of an array. */
int idm_array_read(int map, uint32_t count, void *values);

#endif
