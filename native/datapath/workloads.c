/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This host's own facts: which veth an address sits behind, and which addresses are the host's. They belong to no
 * revision, so they are written into both slots at once, row by row: a row changes from one truth to the next.
 */
#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

// Where the address stands, or would stand.
static uint32_t place_index(const struct idm_datapath *datapath, const struct idm_address *address)
{
	uint32_t low = 0, high = datapath->place_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (memcmp(&datapath->places[middle].address, address, sizeof(*address)) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool is_at(const struct idm_datapath *datapath, uint32_t index, const struct idm_address *address)
{
	return index < datapath->place_count && !memcmp(&datapath->places[index].address, address, sizeof(*address));
}

uint32_t idm_place_of(const struct idm_datapath *datapath, const struct idm_address *address)
{
	uint32_t index = place_index(datapath, address);

	return is_at(datapath, index, address) ? datapath->places[index].ifindex : 0;
}

int idm_place_set(struct idm_datapath *datapath, const struct idm_address *address, uint32_t ifindex)
{
	uint32_t index = place_index(datapath, address);
	struct idm_place *places = datapath->places;

	if (is_at(datapath, index, address)) {
		places[index].ifindex = ifindex;
		return 0;
	}
	if (datapath->place_count == datapath->place_room) {
		uint32_t room = datapath->place_room ? datapath->place_room * 2 : 64;

		places = realloc(places, room * sizeof(*places));
		if (!places)
			return -ENOMEM;
		datapath->places = places;
		datapath->place_room = room;
	}
	memmove(places + index + 1, places + index, (datapath->place_count - index) * sizeof(*places));
	places[index] = (struct idm_place){*address, ifindex};
	datapath->place_count++;
	return 0;
}

static void place_remove(struct idm_datapath *datapath, uint32_t index)
{
	datapath->place_count--;
	memmove(datapath->places + index, datapath->places + index + 1,
		(datapath->place_count - index) * sizeof(*datapath->places));
}

// The address's row in a slot, in the kernel and here.
static int write_row(struct idm_datapath *datapath, uint32_t slot, const struct idm_address *address, uint32_t ifindex)
{
	const struct idm_map *map = idm_map_of(datapath, "endpoints", slot);
	struct idm_rows *rows = datapath->slots[slot].endpoints;
	struct idm_endpoint_row *row = rows ? idm_rows_find(rows, address) : NULL, written;

	if (!row)
		return 0;
	memcpy(&written, row, sizeof(written));
	written.ifindex = ifindex;
	if (bpf_map_update_elem(map->fd, address, &written, BPF_EXIST)) {
		datapath->slots[slot].unsure = true;
		return -errno;
	}
	memcpy(row, &written, sizeof(written));
	return 0;
}

/*
 * A program may still read a row that was replaced or deleted, and the kernel gives its memory to the next row of the
 * map that is written: another endpoint's. So rows are written one by one, with a grace period between, and those that
 * say already what they should not at all. Before the first word nobody reads any.
 */
static int wait_for_readers(struct idm_datapath *datapath)
{
	return datapath->state.generation ? idm_grace_wait(&datapath->grace) : 0;
}

static void row_is_gone(struct idm_datapath *datapath)
{
	if (datapath->state.generation)
		idm_grace_start(&datapath->grace);
}

static bool is_elsewhere(struct idm_rows *rows, const struct idm_address *address, uint32_t ifindex)
{
	const uint8_t *row = rows ? idm_rows_find(rows, address) : NULL;

	return row && memcmp(row + offsetof(struct idm_endpoint_row, ifindex), &ifindex, sizeof(ifindex));
}

static int move_address(struct idm_datapath *datapath, const struct idm_address *address, uint32_t ifindex)
{
	struct idm_endpoint_row *row = datapath->endpoints ? idm_rows_find(datapath->endpoints, address) : NULL;
	bool moves = false;
	int r;

	// All are looked at before the first is written: slots may share their shadow.
	for (uint32_t slot = 0; slot < IDM_SLOTS; slot++)
		moves |= is_elsewhere(datapath->slots[slot].endpoints, address, ifindex);
	r = moves ? wait_for_readers(datapath) : 0;
	for (uint32_t slot = 0; moves && slot < IDM_SLOTS && !r; slot++)
		r = write_row(datapath, slot, address, ifindex);
	if (moves)
		row_is_gone(datapath);
	// It may be a slot's own shadow, which must not say what the kernel does not.
	if (row && !r)
		memcpy((uint8_t *)row + offsetof(struct idm_endpoint_row, ifindex), &ifindex, sizeof(ifindex));
	return r;
}

static int write_attachment(struct idm_datapath *datapath, uint32_t ifindex, const struct idm_attachment *row)
{
	const struct idm_map *map = idm_map_find(datapath, "attachments");
	struct idm_attachment held;
	bool replaces = !bpf_map_lookup_elem(map->fd, &ifindex, &held);
	int r;

	if (replaces && !memcmp(&held, row, sizeof(held)))
		return 0;
	r = wait_for_readers(datapath);
	if (!r && bpf_map_update_elem(map->fd, &ifindex, row, BPF_ANY))
		r = -errno;
	if (replaces)
		row_is_gone(datapath);
	return r;
}

/*
 * Addresses have moved. Rows of connections say behind which interface their ends were: another generation, of the same
 * slot, has every row asked again.
 */
static int ask_again(struct idm_datapath *datapath, bool moved)
{
	const struct idm_map *map = idm_map_find(datapath, "state");
	struct idm_state state = datapath->state;
	uint32_t key = 0;

	if (!moved || !state.generation)
		return 0;
	// Past 0, which says that there is nothing yet.
	state.generation += state.generation >= UINT32_MAX - 1 ? 4 : 2;
	if (bpf_map_update_elem(map->fd, &key, &state, BPF_ANY))
		return -errno;
	datapath->state = state;
	return 0;
}

// Addresses that the workload no longer has lead nowhere.
static int drop_others(struct idm_datapath *datapath, uint32_t ifindex, const struct idm_address *keep, size_t count,
		       bool *moved)
{
	int r = 0;

	for (uint32_t i = datapath->place_count; i-- > 0 && !r;) {
		struct idm_address address = datapath->places[i].address;
		bool kept = datapath->places[i].ifindex != ifindex;

		for (size_t k = 0; k < count && !kept; k++)
			kept = !memcmp(&keep[k], &address, sizeof(address));
		if (kept)
			continue;
		*moved = true;
		r = move_address(datapath, &address, 0);
		if (!r)
			place_remove(datapath, i);
	}
	return r;
}

int idm_datapath_workload(struct idm_datapath *datapath, uint32_t ifindex, uint32_t peer_ifindex, const uint8_t *mac,
			  const uint8_t *addresses, size_t count, struct idm_datapath_error *err)
{
	const struct idm_map *map = idm_map_find(datapath, "attachments");
	const struct idm_address *wanted = (const void *)addresses;
	struct idm_attachment row = {.peer_ifindex = peer_ifindex};
	bool moved = false;
	int r;

	if (!map || !datapath->recovered)
		return idm_say(err, -EINVAL, "nothing is loaded");
	if (mac)
		memcpy(row.mac, mac, sizeof(row.mac));
	r = drop_others(datapath, ifindex, wanted, count, &moved);
	for (size_t i = 0; i < count && !r; i++) {
		moved |= idm_place_of(datapath, &wanted[i]) != ifindex;
		r = idm_place_set(datapath, &wanted[i], ifindex);
		r = r ? r : move_address(datapath, &wanted[i], ifindex);
	}
	r = r ? r : ask_again(datapath, moved);
	// Last: until then the interface lets nothing pass.
	r = r ? r : write_attachment(datapath, ifindex, &row);
	if (r == -E2BIG)
		return idm_say(err, -ENOSPC, "map attachments: full, all %u rows are taken", map->rows);
	return r ? idm_say(err, r, "interface %u: %s", ifindex, idm_meaning(r)) : 0;
}

int idm_datapath_workload_remove(struct idm_datapath *datapath, uint32_t ifindex)
{
	const struct idm_map *map = idm_map_find(datapath, "attachments");
	bool moved = false;
	int r;

	if (!map)
		return -EINVAL;
	r = wait_for_readers(datapath);
	if (r)
		return r;
	if (!bpf_map_delete_elem(map->fd, &ifindex))
		row_is_gone(datapath);
	else if (errno != ENOENT)
		return -errno;
	r = drop_others(datapath, ifindex, NULL, 0, &moved);
	return r ? r : ask_again(datapath, moved);
}

int idm_datapath_locals(struct idm_datapath *datapath, const uint8_t *addresses, size_t count,
			struct idm_datapath_error *err)
{
	const struct idm_map *map = idm_map_find(datapath, "locals");
	struct idm_rows *before = NULL, *after;
	uint32_t one = 1, written = 0, deleted = 0;
	int r = 0;

	if (!map)
		return idm_say(err, -EINVAL, "nothing is loaded");
	after = idm_rows_create(sizeof(struct idm_address), sizeof(one));
	if (!after)
		return -ENOMEM;
	for (size_t i = 0; i < count && !r; i++)
		r = idm_rows_add(after, addresses + i * sizeof(struct idm_address), &one);
	idm_rows_sort(after);
	if (!r && after->count > map->rows)
		r = idm_say(err, -ENOSPC, "map locals: %u rows, %u are wanted", map->rows, after->count);
	else if (!r)
		r = idm_rows_read(map->fd, after->key_size, after->value_size, &before);
	if (before)
		r = idm_rows_apply(map->fd, before, after, &written, &deleted);
	idm_rows_unref(before);
	idm_rows_unref(after);
	return r;
}
