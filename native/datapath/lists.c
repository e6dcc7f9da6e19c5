/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placing lists of spans: those that stand in the array already are taken as they are, the others go where no slot
 * holds anything. What is free is found anew each time from what is held: a few thousand lists sort in a millisecond.
 */
#include "lists.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "idmesh/engine.h"
#include "room.h"
#include "rows.h"

#define BATCH 8192

// ---- wanted ----

void idm_wanted_deinit(struct idm_wanted_lists *wanted)
{
	free(wanted->rows);
	free(wanted->lists);
	free(wanted->table);
	memset(wanted, 0, sizeof(*wanted));
}

static uint64_t hash_rows(const struct idm_span_row *rows, uint32_t count)
{
	return idm_hash64(count, rows, (size_t)count * sizeof(*rows));
}

static bool same_rows(const struct idm_span_row *a, const struct idm_span_row *b, uint32_t count)
{
	return !count || !memcmp(a, b, (size_t)count * sizeof(*a));
}

static int grow_table(struct idm_wanted_lists *wanted)
{
	uint32_t size = wanted->table_size ? wanted->table_size * 2 : 1024;
	uint32_t *table;

	if (wanted->table_size && wanted->list_count * 2 < wanted->table_size)
		return 0;
	table = calloc(size, sizeof(*table));
	if (!table)
		return -ENOMEM;
	for (uint32_t i = 0; i < wanted->list_count; i++) {
		uint32_t at = (uint32_t)wanted->lists[i].hash & (size - 1);

		while (table[at])
			at = (at + 1) & (size - 1);
		table[at] = i + 1;
	}
	free(wanted->table);
	wanted->table = table;
	wanted->table_size = size;
	return 0;
}

static uint32_t append(struct idm_wanted_lists *wanted, const struct idm_span_row *rows, uint32_t count, uint64_t hash,
		       uint32_t at)
{
	if (idm_make_room((void **)&wanted->rows, &wanted->row_room, (uint64_t)wanted->row_count + count,
			  sizeof(*rows)) ||
	    idm_make_room((void **)&wanted->lists, &wanted->list_room, (uint64_t)wanted->list_count + 1,
			  sizeof(*wanted->lists)))
		return IDM_NO_INDEX;
	if (count)
		memcpy(wanted->rows + wanted->row_count, rows, (size_t)count * sizeof(*rows));
	wanted->lists[wanted->list_count] = (struct idm_wanted_list){
		.first = wanted->row_count,
		.count = count,
		.hash = hash,
	};
	wanted->row_count += count;
	wanted->table[at] = ++wanted->list_count;
	return wanted->list_count - 1;
}

uint32_t idm_wanted_add(struct idm_wanted_lists *wanted, const struct idm_span_row *rows, uint32_t count)
{
	uint64_t hash = hash_rows(rows, count);
	uint32_t at;

	if (grow_table(wanted))
		return IDM_NO_INDEX;
	for (at = (uint32_t)hash & (wanted->table_size - 1); wanted->table[at]; at = (at + 1) & (wanted->table_size - 1)) {
		const struct idm_wanted_list *list = &wanted->lists[wanted->table[at] - 1];

		if (list->hash == hash && list->count == count && same_rows(wanted->rows + list->first, rows, count))
			return wanted->table[at] - 1;
	}
	return append(wanted, rows, count, hash, at);
}

// ---- stored ----

int idm_lists_init(struct idm_store_of_lists *store, int map, uint32_t capacity)
{
	int r;

	memset(store, 0, sizeof(*store));
	store->map = map;
	store->capacity = capacity;
	store->mirror = calloc(capacity, sizeof(*store->mirror));
	if (!store->mirror)
		return -ENOMEM;
	r = idm_array_read(map, capacity, store->mirror);
	if (r)
		idm_lists_deinit(store);
	return r;
}

void idm_lists_deinit(struct idm_store_of_lists *store)
{
	free(store->mirror);
	free(store->lists);
	memset(store, 0, sizeof(*store));
}

uint32_t idm_lists_rows(const struct idm_store_of_lists *store)
{
	uint32_t rows = 0;

	for (uint32_t i = 0; i < store->count; i++)
		rows += store->lists[i].place.count;
	return rows;
}

int idm_lists_found(struct idm_store_of_lists *store, uint32_t slot, struct idm_ports place)
{
	if (!place.count)
		return 0;
	if (place.first >= store->capacity || place.count > store->capacity - place.first)
		return -EINVAL;
	if (idm_make_room((void **)&store->lists, &store->room, (uint64_t)store->count + 1, sizeof(*store->lists)))
		return -ENOMEM;
	store->lists[store->count++] = (struct idm_stored_list){
		.place = place,
		.hash = hash_rows(store->mirror + place.first, place.count),
		.slots = 1u << slot,
	};
	return 0;
}

static int by_place(const void *left, const void *right)
{
	const struct idm_stored_list *a = left, *b = right;

	if (a->place.first != b->place.first)
		return a->place.first < b->place.first ? -1 : 1;
	return a->place.count < b->place.count ? -1 : a->place.count > b->place.count;
}

static void sort(struct idm_store_of_lists *store)
{
	if (store->count)
		qsort(store->lists, store->count, sizeof(*store->lists), by_place);
}

void idm_lists_settle(struct idm_store_of_lists *store)
{
	uint32_t kept = 0;

	sort(store);
	for (uint32_t i = 0; i < store->count; i++) {
		struct idm_stored_list *list = &store->lists[i];

		if (kept && !by_place(&store->lists[kept - 1], list))
			store->lists[kept - 1].slots |= list->slots;
		else
			store->lists[kept++] = *list;
	}
	store->count = kept;
}

void idm_lists_forget(struct idm_store_of_lists *store, uint32_t slot)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < store->count; i++) {
		store->lists[i].slots &= ~(1u << slot);
		if (store->lists[i].slots)
			store->lists[kept++] = store->lists[i];
	}
	store->count = kept;
}

// ---- placing ----

#define NEW (1u << 31) // in slots, while placing: the slot's new revision holds it

struct placing {
	struct idm_store_of_lists *store;
	struct idm_wanted_lists *wanted;
	struct idm_ports *gaps;
	uint32_t gap_count, gap;
	uint8_t *dirty; // per list that was written
};

// Wanted lists that stand somewhere take that place. *missing: numbers of the others, longest first.
static void take_standing(struct placing *placing)
{
	struct idm_store_of_lists *store = placing->store;
	struct idm_wanted_lists *wanted = placing->wanted;

	for (uint32_t i = 0; i < store->count; i++) {
		struct idm_stored_list *stored = &store->lists[i];
		uint32_t at = (uint32_t)stored->hash & (wanted->table_size - 1);

		for (; wanted->table_size && wanted->table[at]; at = (at + 1) & (wanted->table_size - 1)) {
			struct idm_wanted_list *list = &wanted->lists[wanted->table[at] - 1];

			if (list->hash != stored->hash || list->count != stored->place.count || list->place.count ||
			    !same_rows(wanted->rows + list->first, store->mirror + stored->place.first, list->count))
				continue;
			list->place = stored->place;
			stored->slots |= NEW;
			break;
		}
	}
}

// Runs of rows that no list of the other slot and none that was taken covers. store->lists rise by place.
static int find_gaps(struct placing *placing, uint32_t slot)
{
	struct idm_store_of_lists *store = placing->store;
	uint32_t end = 0;

	placing->gaps = malloc(((size_t)store->count + 1) * sizeof(*placing->gaps));
	if (!placing->gaps)
		return -ENOMEM;
	for (uint32_t i = 0; i < store->count; i++) {
		const struct idm_stored_list *list = &store->lists[i];

		if (!(list->slots & ~(1u << slot)))
			continue;
		if (list->place.first > end)
			placing->gaps[placing->gap_count++] = (struct idm_ports){end, list->place.first - end};
		if (list->place.first + list->place.count > end)
			end = list->place.first + list->place.count;
	}
	if (end < store->capacity)
		placing->gaps[placing->gap_count++] = (struct idm_ports){end, store->capacity - end};
	return 0;
}

// Next fit: lists are short, so the gap at hand nearly always has room.
static bool take_gap(struct placing *placing, struct idm_wanted_list *list)
{
	for (uint32_t tried = 0; tried < placing->gap_count; tried++) {
		struct idm_ports *gap = &placing->gaps[placing->gap];

		if (gap->count >= list->count) {
			list->place = (struct idm_ports){gap->first, list->count};
			gap->first += list->count;
			gap->count -= list->count;
			return true;
		}
		placing->gap = (placing->gap + 1) % placing->gap_count;
	}
	return false;
}

static int place_new(struct placing *placing)
{
	struct idm_wanted_lists *wanted = placing->wanted;

	placing->dirty = calloc((size_t)wanted->list_count + 1, 1);
	if (!placing->dirty)
		return -ENOMEM;
	for (uint32_t i = 0; i < wanted->list_count; i++) {
		struct idm_wanted_list *list = &wanted->lists[i];

		if (!list->count || list->place.count)
			continue;
		if (!take_gap(placing, list))
			return -ENOSPC;
		placing->dirty[i] = 1;
	}
	return 0;
}

static int write_batch(int map, const uint32_t *keys, const struct idm_span_row *values, uint32_t count)
{
	DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);

	return count && bpf_map_update_batch(map, keys, values, &count, &options) ? -errno : 0;
}

static int write_new(struct placing *placing, uint32_t *written)
{
	struct idm_store_of_lists *store = placing->store;
	const struct idm_wanted_lists *wanted = placing->wanted;
	struct idm_span_row *values = malloc(BATCH * sizeof(*values));
	uint32_t *keys = malloc(BATCH * sizeof(*keys)), count = 0;
	int r = keys && values ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < wanted->list_count && !r; i++) {
		const struct idm_wanted_list *list = &wanted->lists[i];

		for (uint32_t k = 0; placing->dirty[i] && k < list->count && !r; k++) {
			keys[count] = list->place.first + k;
			values[count] = store->mirror[list->place.first + k] = wanted->rows[list->first + k];
			(*written)++;
			if (++count == BATCH) {
				r = write_batch(store->map, keys, values, count);
				count = 0;
			}
		}
	}
	r = r ? r : write_batch(store->map, keys, values, count);
	free(keys);
	free(values);
	return r;
}

// The slot's bit from what it held to what it holds; new lists come in.
static void register_new(struct placing *placing, uint32_t slot)
{
	struct idm_store_of_lists *store = placing->store;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < store->count; i++) {
		struct idm_stored_list *list = &store->lists[i];

		list->slots = (list->slots & ~(NEW | 1u << slot)) | (list->slots & NEW ? 1u << slot : 0);
		if (list->slots)
			store->lists[kept++] = *list;
	}
	store->count = kept;
	for (uint32_t i = 0; i < placing->wanted->list_count; i++) {
		const struct idm_wanted_list *list = &placing->wanted->lists[i];

		if (placing->dirty[i])
			store->lists[store->count++] =
				(struct idm_stored_list){list->place, list->hash, 1u << slot};
	}
	sort(store);
}

int idm_lists_place(struct idm_store_of_lists *store, uint32_t slot, struct idm_wanted_lists *wanted,
		    uint32_t *written)
{
	struct placing placing = {.store = store, .wanted = wanted};
	int r = idm_make_room((void **)&store->lists, &store->room, (uint64_t)store->count + wanted->list_count,
			  sizeof(*store->lists));

	for (uint32_t i = 0; i < wanted->list_count; i++)
		wanted->lists[i].place = (struct idm_ports){0};
	if (!r) {
		take_standing(&placing);
		r = find_gaps(&placing, slot);
	}
	r = r ? r : place_new(&placing);
	if (!r) {
		// Before the kernel is written: if that fails midway, the places are held all the same.
		register_new(&placing, slot);
		r = write_new(&placing, written);
	} else {
		for (uint32_t i = 0; i < store->count; i++)
			store->lists[i].slots &= ~NEW;
	}
	free(placing.gaps);
	free(placing.dirty);
	return r;
}
