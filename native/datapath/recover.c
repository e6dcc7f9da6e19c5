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

	return idm_rows_read(map->fd, map->key_size, map->value_size, map->rows, ret);
}

static int read_sides(struct idm_datapath *datapath, uint32_t slot)
{
	const struct idm_map *map = idm_map_of(datapath, "sides", slot);
	struct idm_side_row *sides = calloc(datapath->sides_max, sizeof(*sides));

	datapath->slots[slot].sides = sides;
	if (!sides)
		return -ENOMEM;
	for (uint32_t i = 0; i < datapath->sides_max; i++) {
		if (bpf_map_lookup_elem(map->fd, &i, &sides[i]))
			return -errno;
	}
	return 0;
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

static int find_places(struct idm_datapath *datapath)
{
	const struct idm_rows *rows = datapath->slots[datapath->state.generation & 1].endpoints;
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
	datapath->recovered = !find_places(datapath);
	return datapath->recovered ? 0 : idm_say(err, -ENOMEM, "no memory");
}
