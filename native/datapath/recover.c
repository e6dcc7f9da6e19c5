/* SPDX-License-Identifier: Apache-2.0 */
/* What an earlier process left in the kernel, read back: from then on the shadows are as if we had written it. */
#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

void idm_slot_clear(struct idm_slot *slot)
{
	idm_rows_unref(slot->endpoints);
	idm_rows_unref(slot->prefixes);
	idm_rows_unref(slot->peers);
	free(slot->sides);
	*slot = (struct idm_slot){0};
}

static int read_table(struct idm_datapath *datapath, const char *name, uint32_t slot, struct idm_rows **ret)
{
	const struct idm_map *map = idm_map_of(datapath, name, slot);

	return idm_rows_read(map->fd, map->key_size, map->value_size, ret);
}

static int read_sides(struct idm_datapath *datapath, uint32_t slot)
{
	const struct idm_map *map = idm_map_of(datapath, "sides", slot);
	struct idm_side_row *sides = calloc(datapath->sides_max, sizeof(*sides));

	datapath->slots[slot].sides = sides;
	if (!sides)
		return -ENOMEM;
	return idm_array_read(map->fd, datapath->sides_max, sides);
}

static int find_lists(struct idm_datapath *datapath, uint32_t slot)
{
	const struct idm_slot *held = &datapath->slots[slot];
	int r = 0;

	for (uint32_t i = 0; i < datapath->sides_max && !r; i++)
		r = idm_lists_found(&datapath->lists, slot, held->sides[i].any);
	for (uint32_t i = 0; i < held->peers->count && !r; i++) {
		struct idm_ports place;

		memcpy(&place, idm_row(held->peers, i) + held->peers->key_size, sizeof(place));
		r = idm_lists_found(&datapath->lists, slot, place);
	}
	return r;
}

int idm_slot_read(struct idm_datapath *datapath, uint32_t slot, struct idm_datapath_error *err)
{
	struct idm_slot *held = &datapath->slots[slot];
	int r;

	idm_slot_clear(held);
	r = read_table(datapath, "endpoints", slot, &held->endpoints);
	r = r ? r : read_table(datapath, "prefixes", slot, &held->prefixes);
	r = r ? r : read_table(datapath, "peers", slot, &held->peers);
	r = r ? r : read_sides(datapath, slot);
	r = r ? r : find_lists(datapath, slot);
	if (r == -EINVAL)
		return idm_say(err, -ESTALE, "the pinned maps are damaged: a list of slot %u leaves the map spans", slot);
	return r ? idm_say(err, r, "slot %u cannot be read back: %s", slot, idm_meaning(r)) : 0;
}

static int find_places(struct idm_datapath *datapath, const struct idm_rows *rows)
{
	int r = 0;

	for (uint32_t i = 0; i < rows->count && !r; i++) {
		struct idm_address address;
		struct idm_endpoint_row row;

		memcpy(&address, idm_row(rows, i), sizeof(address));
		memcpy(&row, idm_row(rows, i) + sizeof(address), sizeof(row));
		if (row.ifindex)
			r = idm_place_set(datapath, &address, row.ifindex);
	}
	return r;
}

static int read_state(struct idm_datapath *datapath, struct idm_datapath_error *err)
{
	const struct idm_map *map = idm_map_find(datapath, "state");
	uint32_t key = 0;

	if (!map || !idm_map_find(datapath, "spans") || !idm_map_of(datapath, "peers", 1))
		return idm_say(err, -EINVAL, "no object that was loaded has the maps of the data path");
	if (bpf_map_lookup_elem(map->fd, &key, &datapath->state))
		return idm_say(err, -errno, "map state: %s", idm_meaning(-errno));
	if (!datapath->state.layout && !datapath->state.generation) {
		datapath->state.layout = IDM_LAYOUT;
		if (bpf_map_update_elem(map->fd, &key, &datapath->state, BPF_ANY))
			return idm_say(err, -errno, "map state: %s", idm_meaning(-errno));
	}
	if (datapath->state.layout != IDM_LAYOUT)
		return idm_say(err, -ESTALE, "the pinned maps have layout %u, this loader has layout %u",
			       datapath->state.layout, IDM_LAYOUT);
	return 0;
}

int idm_datapath_recover(struct idm_datapath *datapath, struct idm_datapath_error *err)
{
	const struct idm_map *spans;
	int r = read_state(datapath, err);

	if (r)
		return r;
	datapath->sides_max = idm_map_of(datapath, "sides", 0)->rows;
	spans = idm_map_find(datapath, "spans");
	idm_lists_deinit(&datapath->lists);
	r = idm_lists_init(&datapath->lists, spans->fd, spans->rows);
	if (r)
		return idm_say(err, r, "map spans: %s", idm_meaning(r));
	for (uint32_t slot = 0; slot < IDM_SLOTS && !r; slot++)
		r = idm_slot_read(datapath, slot, err);
	if (r)
		return r;
	idm_lists_settle(&datapath->lists);
	datapath->recovered = !find_places(datapath, datapath->slots[datapath->state.generation & 1].endpoints);
	return datapath->recovered ? 0 : idm_say(err, -ENOMEM, "no memory");
}

// ---- from another set of maps ----

int idm_datapath_adopt(struct idm_datapath *datapath, int endpoints)
{
	struct bpf_map_info info = {0};
	struct idm_rows *rows = NULL;
	uint32_t size = sizeof(info);
	int r;

	if (bpf_obj_get_info_by_fd(endpoints, &info, &size))
		return -errno;
	if (info.key_size != sizeof(struct idm_address) || info.value_size != sizeof(struct idm_endpoint_row))
		return -EPROTO;
	r = idm_rows_read(endpoints, info.key_size, info.value_size, &rows);
	r = r ? r : find_places(datapath, rows);
	idm_rows_unref(rows);
	return r;
}

int idm_datapath_take_places(struct idm_datapath *datapath, const struct idm_datapath *from)
{
	int r = 0;

	for (uint32_t i = 0; i < from->place_count && !r; i++)
		r = idm_place_set(datapath, &from->places[i].address, from->places[i].ifindex);
	return r;
}

int idm_datapath_copy(struct idm_datapath *datapath, const char *name, int from)
{
	const struct idm_map *map = idm_map_find(datapath, name);
	struct bpf_map_info info = {0};
	struct idm_rows *rows = NULL;
	uint32_t size = sizeof(info);
	int r;

	if (!map || bpf_obj_get_info_by_fd(from, &info, &size))
		return -EINVAL;
	if (info.key_size != map->key_size || info.value_size != map->value_size)
		return -EPROTO;
	r = idm_rows_read(from, info.key_size, info.value_size, &rows);
	for (uint32_t i = 0; !r && i < rows->count; i++) {
		if (bpf_map_update_elem(map->fd, idm_row(rows, i), idm_row(rows, i) + rows->key_size, BPF_ANY))
			r = -errno;
	}
	idm_rows_unref(rows);
	return r;
}

int idm_datapath_read_row(int map, const void *key, void *value, size_t size)
{
	struct bpf_map_info info = {0};
	uint32_t info_size = sizeof(info);

	if (bpf_obj_get_info_by_fd(map, &info, &info_size))
		return -errno;
	if (info.value_size != size)
		return -EPROTO;
	return bpf_map_lookup_elem(map, key, value) ? -errno : 0;
}
