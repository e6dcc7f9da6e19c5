/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of spans in the one array that both slots share. Equal lists stand there once; a list is written again only
 * when neither slot holds it, so that the live revision never sees a change.
 */
#ifndef IDMESH_DATAPATH_LISTS_H
#define IDMESH_DATAPATH_LISTS_H

#include <stdbool.h>
#include <stdint.h>

#include "idmesh/datapath.h"

/* Lists that a revision wants: equal ones have one number. */
struct idm_wanted_lists {
	struct idm_span_row *rows;
	uint32_t row_count, row_room;
	struct idm_wanted_list {
		uint32_t first, count; // in rows
		uint64_t hash;
		struct idm_ports place; // in the kernel's array, once placed
	} *lists;
	uint32_t list_count, list_room;
	uint32_t *table; // numbers of lists by hash, + 1; 0: free
	uint32_t table_size;
};

void idm_wanted_deinit(struct idm_wanted_lists *wanted);
/* Number of a list of these rows, or IDM_NO_INDEX: no memory. */
uint32_t idm_wanted_add(struct idm_wanted_lists *wanted, const struct idm_span_row *rows, uint32_t count);

/* A list in the kernel's array. */
struct idm_stored_list {
	struct idm_ports place;
	uint64_t hash;
	uint32_t slots; // bit of each slot that holds it
};

struct idm_store_of_lists {
	int map;
	uint32_t capacity;
	struct idm_span_row *mirror; // of the whole array
	struct idm_stored_list *lists;
	uint32_t count, room;
};

int idm_lists_init(struct idm_store_of_lists *store, int map, uint32_t capacity);
void idm_lists_deinit(struct idm_store_of_lists *store);
/* Rows that some list covers. */
uint32_t idm_lists_rows(const struct idm_store_of_lists *store);
/* A list that a slot was found to hold; -EINVAL if it leaves the array. */
int idm_lists_found(struct idm_store_of_lists *store, uint32_t slot, struct idm_ports place);
/* After the last idm_lists_found(): equal ones become one item. */
void idm_lists_settle(struct idm_store_of_lists *store);
/* The slot holds nothing any more. */
void idm_lists_forget(struct idm_store_of_lists *store, uint32_t slot);
/**
 * Give every wanted list its place for a slot, and write what is new to the kernel. The slot's former lists are let go.
 * @param[in,out] written Rows.
 * @return 0, -ENOSPC if the array is too small (nothing changed), or the kernel's error (the slot is unsure then).
 */
int idm_lists_place(struct idm_store_of_lists *store, uint32_t slot, struct idm_wanted_lists *wanted,
		    uint32_t *written);

#endif
