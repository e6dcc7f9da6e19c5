/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of sorted rows: two are merged to find what has to be written and deleted, in batches. */
#define _GNU_SOURCE
#include "rows.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

// Rows a system call takes: enough that the call itself costs nothing, little enough to fit a cache.
#define BATCH 4096

struct idm_rows *idm_rows_create(uint32_t key_size, uint32_t value_size)
{
	struct idm_rows *rows = calloc(1, sizeof(*rows));

	if (!rows)
		return NULL;
	rows->refs = 1;
	rows->key_size = key_size;
	rows->value_size = value_size;
	rows->size = key_size + value_size;
	return rows;
}

struct idm_rows *idm_rows_ref(struct idm_rows *rows)
{
	rows->refs++;
	return rows;
}

void idm_rows_unref(struct idm_rows *rows)
{
	if (!rows || --rows->refs)
		return;
	free(rows->data);
	free(rows);
}

static int make_room(struct idm_rows *rows, uint32_t more)
{
	uint64_t wanted = (uint64_t)rows->count + more;
	uint64_t room = rows->room ? rows->room : 64;
	uint8_t *data;

	if (wanted <= rows->room)
		return 0;
	while (room < wanted)
		room *= 2;
	if (room > UINT32_MAX)
		return -ENOMEM;
	data = realloc(rows->data, room * rows->size);
	if (!data)
		return -ENOMEM;
	rows->data = data;
	rows->room = (uint32_t)room;
	return 0;
}

int idm_rows_add(struct idm_rows *rows, const void *key, const void *value)
{
	uint8_t *row;

	if (make_room(rows, 1))
		return -ENOMEM;
	row = idm_row(rows, rows->count++);
	memcpy(row, key, rows->key_size);
	memcpy(row + rows->key_size, value, rows->value_size);
	return 0;
}

static int compare(const void *a, const void *b, void *key_size)
{
	return memcmp(a, b, *(const uint32_t *)key_size);
}

void idm_rows_sort(struct idm_rows *rows)
{
	for (uint32_t i = 1; i < rows->count; i++) {
		if (memcmp(idm_row(rows, i - 1), idm_row(rows, i), rows->key_size) < 0)
			continue;
		qsort_r(rows->data, rows->count, rows->size, compare, &rows->key_size);
		return;
	}
}

void *idm_rows_find(const struct idm_rows *rows, const void *key)
{
	uint32_t low = 0, high = rows->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		uint8_t *row = idm_row(rows, middle);
		int order = memcmp(row, key, rows->key_size);

		if (!order)
			return row + rows->key_size;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

// ---- to the kernel ----

struct batch {
	int map;
	const struct idm_rows *shape;
	bool deletes;
	uint32_t count;
	uint8_t *keys, *values;
};

static int batch_init(struct batch *batch, int map, const struct idm_rows *shape, bool deletes)
{
	*batch = (struct batch){.map = map, .shape = shape, .deletes = deletes};
	batch->keys = malloc((size_t)BATCH * shape->key_size);
	batch->values = malloc((size_t)BATCH * shape->value_size);
	return batch->keys && batch->values ? 0 : -ENOMEM;
}

static void batch_deinit(struct batch *batch)
{
	free(batch->keys);
	free(batch->values);
}

// Tries have no batches for deleting in every kernel: one by one then.
static int delete_singly(const struct batch *batch)
{
	for (uint32_t i = 0; i < batch->count; i++) {
		if (bpf_map_delete_elem(batch->map, batch->keys + (size_t)i * batch->shape->key_size) &&
		    errno != ENOENT)
			return -errno;
	}
	return 0;
}

static int write_singly(const struct batch *batch)
{
	for (uint32_t i = 0; i < batch->count; i++) {
		if (bpf_map_update_elem(batch->map, batch->keys + (size_t)i * batch->shape->key_size,
					batch->values + (size_t)i * batch->shape->value_size, BPF_ANY))
			return -errno;
	}
	return 0;
}

static int batch_flush(struct batch *batch)
{
	DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
	uint32_t count = batch->count;
	int r;

	if (!count)
		return 0;
	if (batch->deletes)
		r = bpf_map_delete_batch(batch->map, batch->keys, &count, &options) ? -errno : 0;
	else
		r = bpf_map_update_batch(batch->map, batch->keys, batch->values, &count, &options) ? -errno : 0;
	if (r == -ENOTSUP || r == -524 || (batch->deletes && r == -ENOENT))
		r = batch->deletes ? delete_singly(batch) : write_singly(batch);
	batch->count = 0;
	return r;
}

static int batch_add(struct batch *batch, const uint8_t *row)
{
	const struct idm_rows *shape = batch->shape;

	memcpy(batch->keys + (size_t)batch->count * shape->key_size, row, shape->key_size);
	memcpy(batch->values + (size_t)batch->count * shape->value_size, row + shape->key_size, shape->value_size);
	return ++batch->count == BATCH ? batch_flush(batch) : 0;
}

// One pass over both tables: before's rows that after lacks, or after's rows that before lacks or has otherwise.
static int apply_pass(struct batch *batch, const struct idm_rows *before, const struct idm_rows *after,
		      uint32_t *counted)
{
	uint32_t i = 0, j = 0;
	int r = 0;

	while (!r && (i < before->count || j < after->count)) {
		const uint8_t *old = i < before->count ? idm_row(before, i) : NULL;
		const uint8_t *new = j < after->count ? idm_row(after, j) : NULL;
		int order = !old ? 1 : !new ? -1 : memcmp(old, new, before->key_size);
		const uint8_t *row = NULL;

		if (order < 0 && batch->deletes)
			row = old;
		if (order > 0 && !batch->deletes)
			row = new;
		if (!order && !batch->deletes && memcmp(old, new, before->size))
			row = new;
		i += order <= 0;
		j += order >= 0;
		if (row) {
			(*counted)++;
			r = batch_add(batch, row);
		}
	}
	return r ? r : batch_flush(batch);
}

int idm_rows_apply(int map, const struct idm_rows *before, const struct idm_rows *after, uint32_t *written,
		   uint32_t *deleted)
{
	int r = 0;

	if (before == after)
		return 0;
	for (int deletes = 1; deletes >= 0 && !r; deletes--) {
		struct batch batch;

		r = batch_init(&batch, map, after, deletes);
		r = r ? r : apply_pass(&batch, before, after, deletes ? deleted : written);
		batch_deinit(&batch);
	}
	return r;
}

// ---- from the kernel ----

static int read_singly(int map, struct idm_rows *rows)
{
	uint8_t key[64], value[64];
	bool first = true;

	while (!bpf_map_get_next_key(map, first ? NULL : key, key)) {
		first = false;
		if (!bpf_map_lookup_elem(map, key, value) && idm_rows_add(rows, key, value))
			return -ENOMEM;
	}
	return errno == ENOENT ? 0 : -errno;
}

// Hashes keep a bucket number in the cursor, others a key.
#define CURSOR 64

static int add_batch(struct idm_rows *rows, const uint8_t *keys, const uint8_t *values, uint32_t count)
{
	int r = 0;

	for (uint32_t i = 0; i < count && !r; i++)
		r = idm_rows_add(rows, keys + (size_t)i * rows->key_size, values + (size_t)i * rows->value_size);
	return r;
}

// -ENOTSUP if the map has no batches.
static int read_batches(int map, struct idm_rows *rows)
{
	DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
	struct batch batch;
	uint8_t cursor[CURSOR] = {0};
	bool first = true;
	int r = batch_init(&batch, map, rows, false), said = 0;

	while (!r && !said) {
		uint32_t count = BATCH;

		said = bpf_map_lookup_batch(map, first ? NULL : cursor, cursor, batch.keys, batch.values, &count,
					    &options) ? -errno : 0;
		first = false;
		// With the last rows the kernel says that there are no more.
		if (!said || said == -ENOENT)
			r = add_batch(rows, batch.keys, batch.values, count);
	}
	batch_deinit(&batch);
	if (r || said == -ENOENT)
		return r;
	return said == -524 ? -ENOTSUP : said;
}

int idm_rows_read(int map, uint32_t key_size, uint32_t value_size, struct idm_rows **ret)
{
	struct idm_rows *rows = idm_rows_create(key_size, value_size);
	int r;

	if (!rows)
		return -ENOMEM;
	r = key_size > CURSOR || value_size > CURSOR ? -EINVAL : read_batches(map, rows);
	if (r == -ENOTSUP || r == -ENOSPC) {
		rows->count = 0;
		r = read_singly(map, rows);
	}
	if (r) {
		idm_rows_unref(rows);
		return r;
	}
	idm_rows_sort(rows);
	*ret = rows;
	return 0;
}

int idm_array_read(int map, uint32_t count, void *values)
{
	DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
	uint32_t *keys = malloc((size_t)count * sizeof(*keys)), cursor, read = count;
	int r;

	if (!keys)
		return -ENOMEM;
	r = bpf_map_lookup_batch(map, NULL, &cursor, keys, values, &read, &options) ? -errno : 0;
	free(keys);
	return r && r != -ENOENT ? r : read == count ? 0 : -EIO;
}
