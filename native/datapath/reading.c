/* SPDX-License-Identifier: Apache-2.0 */
/* Reading what programs write: events in batches, counters summed over CPUs, rows of hashes, how full maps are. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

#define ENOTSUPP 524 // the kernel's own

// ---- events ----

static int take_event(void *context, void *data, size_t size)
{
	struct idm_datapath *datapath = context;

	if (size < sizeof(struct idm_event))
		return 0;
	memcpy(datapath->drain.at, data, sizeof(struct idm_event));
	datapath->drain.at += sizeof(struct idm_event);
	datapath->drain.left -= sizeof(struct idm_event);
	// Stops the consuming: what has no room stays in the ring.
	return datapath->drain.left < sizeof(struct idm_event) ? -ENOSPC : 0;
}

static int open_ring(struct idm_datapath *datapath)
{
	const struct idm_map *map = idm_map_find(datapath, "events");

	if (!map)
		return -ENOENT;
	if (!datapath->ring)
		datapath->ring = ring_buffer__new(map->fd, take_event, datapath, NULL);
	return datapath->ring ? 0 : -errno;
}

int idm_datapath_events_fd(struct idm_datapath *datapath)
{
	int r = open_ring(datapath);

	return r ? r : ring_buffer__epoll_fd(datapath->ring);
}

int64_t idm_datapath_events(struct idm_datapath *datapath, void *ret, size_t size, int timeout_ms)
{
	int r = open_ring(datapath);

	if (r)
		return r;
	if (size < sizeof(struct idm_event))
		return -EINVAL;
	datapath->drain.at = ret;
	datapath->drain.left = size;
	r = ring_buffer__consume(datapath->ring);
	if (!r && timeout_ms)
		r = ring_buffer__poll(datapath->ring, timeout_ms);
	if (r < 0 && r != -ENOSPC)
		return r;
	return datapath->drain.at - (uint8_t *)ret;
}

// ---- counters ----

int idm_datapath_counters(struct idm_datapath *datapath, void *ret, size_t size, uint64_t *losses)
{
	const struct idm_map *counters = idm_map_find(datapath, "counters"), *lost = idm_map_find(datapath, "losses");
	int cpus = libbpf_num_possible_cpus();
	struct idm_counter *sums = ret, *each;
	uint64_t *each_lost;
	int r = 0;

	if (!counters || !lost || cpus < 1 || size != IDM_COUNTERS * sizeof(*sums))
		return -EINVAL;
	each = calloc((size_t)cpus, sizeof(*each));
	each_lost = (void *)each;
	memset(sums, 0, size);
	*losses = 0;
	for (uint32_t i = 0; each && i < IDM_COUNTERS && !r; i++) {
		r = bpf_map_lookup_elem(counters->fd, &i, each) ? -errno : 0;
		for (int cpu = 0; cpu < cpus && !r; cpu++) {
			sums[i].packets += each[cpu].packets;
			sums[i].bytes += each[cpu].bytes;
		}
	}
	if (each && !r)
		r = bpf_map_lookup_elem(lost->fd, &(uint32_t){0}, each_lost) ? -errno : 0;
	for (int cpu = 0; each && cpu < cpus && !r; cpu++)
		*losses += each_lost[cpu];
	free(each);
	return each ? r : -ENOMEM;
}

// ---- maps ----

int64_t idm_datapath_read(struct idm_datapath *datapath, const char *name, int first, void *cursor, void *keys,
			  void *values, uint32_t count)
{
	const struct idm_map *map = idm_map_find(datapath, name);
	DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
	int r;

	if (!map)
		return -EINVAL;
	r = bpf_map_lookup_batch(map->fd, first ? NULL : cursor, cursor, keys, values, &count, &options) ? -errno : 0;
	// The kernel says "no more" together with the last rows.
	if (r == -ENOENT && count)
		return count;
	return r ? r : (int64_t)count;
}

int64_t idm_datapath_rows(struct idm_datapath *datapath, const char *name)
{
	const struct idm_map *map = idm_map_find(datapath, name);
	uint8_t key[64];
	int64_t rows = 0;

	if (!map || map->key_size > sizeof(key))
		return -EINVAL;
	for (bool first = true; !bpf_map_get_next_key(map->fd, first ? NULL : key, key); first = false) {
		// A hash that changes underneath may start over.
		if (++rows > 2 * (int64_t)map->rows)
			return -EAGAIN;
	}
	return errno == ENOENT ? rows : -errno;
}

int idm_datapath_lookup(struct idm_datapath *datapath, const char *name, const void *key, void *value)
{
	const struct idm_map *map = idm_map_find(datapath, name);

	return !map ? -EINVAL : bpf_map_lookup_elem(map->fd, key, value) ? -errno : 0;
}

int idm_datapath_update(struct idm_datapath *datapath, const char *name, const void *key, const void *value)
{
	const struct idm_map *map = idm_map_find(datapath, name);

	return !map ? -EINVAL : bpf_map_update_elem(map->fd, key, value, BPF_ANY) ? -errno : 0;
}

int idm_datapath_delete(struct idm_datapath *datapath, const char *name, const void *key)
{
	const struct idm_map *map = idm_map_find(datapath, name);

	return !map ? -EINVAL : bpf_map_delete_elem(map->fd, key) ? -errno : 0;
}

// ---- how full ----

// Rows that our own bookkeeping knows; the greater of both slots is what fills up.
static uint32_t rows_known(const struct idm_datapath *datapath, const char *name)
{
	if (!datapath->recovered)
		return IDM_NO_INDEX;
	if (!strcmp(name, "spans"))
		return idm_lists_rows(&datapath->lists);
	for (uint32_t slot = 0; slot < IDM_SLOTS; slot++) {
		const struct idm_slot *held = &datapath->slots[slot];
		const struct {
			const char *name;
			const struct idm_rows *rows;
		} tables[] = {
			{"endpoints", held->endpoints}, {"prefixes", held->prefixes}, {"peers", held->peers}};
		char whole[IDM_DATAPATH_NAME];

		for (size_t i = 0; i < 3; i++) {
			snprintf(whole, sizeof(whole), "%s_%u", tables[i].name, slot);
			if (!strcmp(name, whole))
				return tables[i].rows ? tables[i].rows->count : IDM_NO_INDEX;
		}
		snprintf(whole, sizeof(whole), "sides_%u", slot);
		if (strcmp(name, whole) || !held->sides)
			continue;
		uint32_t used = 0;

		for (uint32_t i = 0; i < datapath->sides_max; i++)
			used += !!held->sides[i].flags;
		return used;
	}
	return IDM_NO_INDEX;
}

static uint64_t bytes_of(int fd)
{
	char path[64], line[128];
	unsigned long long bytes = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "memlock: %llu", &bytes) == 1)
			break;
	}
	if (file)
		fclose(file);
	return bytes;
}

int idm_datapath_info(struct idm_datapath *datapath, uint32_t index, struct idm_datapath_info *ret)
{
	const struct idm_map *map = &datapath->maps[index];

	if (index >= datapath->map_count)
		return -ENOENT;
	*ret = (struct idm_datapath_info){
		.id = map->id,
		.type = map->type,
		.key_size = map->key_size,
		.value_size = map->value_size,
		.max_rows = map->rows,
		.rows = rows_known(datapath, map->name),
		.bytes = bytes_of(map->fd),
	};
	memcpy(ret->name, map->name, sizeof(ret->name));
	return 0;
}
