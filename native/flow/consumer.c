// SPDX-License-Identifier: Apache-2.0
// The consumer's side: nothing a producer wrote is believed before it was copied out and checked.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ring.h"

struct idm_ring_view {
	struct ring_map map;
	uint64_t tail;
};

// A page that went away under the mapping would kill us. Asked in this order: once sealed, the size only grows.
static bool sealed(int fd, uint64_t size)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat found;

	return seals >= 0 && (seals & F_SEAL_SHRINK) && !fstat(fd, &found) && found.st_size >= 0 &&
	       (uint64_t)found.st_size >= size;
}

// The size is the file's own: what the head claims may change under us.
static int64_t data_size(int fd)
{
	struct stat found;
	uint64_t size;

	if (fstat(fd, &found) || found.st_size <= IDM_RING_PAGE)
		return -EINVAL;
	size = (uint64_t)found.st_size - IDM_RING_PAGE;
	return ring_size_good(size) && sealed(fd, IDM_RING_PAGE + size) ? (int64_t)size : -EINVAL;
}

static bool introduced(const struct ring_map *map)
{
	return map->head->magic == IDM_RING_MAGIC && map->head->version == IDM_RING_VERSION &&
	       map->head->data_size == map->size;
}

int idm_ring_open(int fd, struct idm_ring_view **ret)
{
	int64_t size = data_size(fd);
	struct idm_ring_view *view;
	int error;

	if (size < 0)
		return (int)size;
	view = calloc(1, sizeof(*view));
	if (!view)
		return -ENOMEM;
	error = ring_map(fd, (uint32_t)size, &view->map);
	if (error) {
		free(view);
		// Other errors than a lack of memory come of what the file is: not writable, sealed against writing.
		return error == -ENOMEM ? error : -EINVAL;
	}
	if (!introduced(&view->map)) {
		idm_ring_close(view);
		return -EINVAL;
	}
	view->tail = __atomic_load_n(&view->map.head->tail, __ATOMIC_RELAXED);
	*ret = view;
	return 0;
}

void idm_ring_close(struct idm_ring_view *view)
{
	if (!view)
		return;
	ring_unmap(&view->map);
	free(view);
}

uint64_t idm_ring_view_written(const struct idm_ring_view *view)
{
	return __atomic_load_n(&view->map.head->written, __ATOMIC_RELAXED);
}

uint64_t idm_ring_view_lost(const struct idm_ring_view *view)
{
	return __atomic_load_n(&view->map.head->lost, __ATOMIC_RELAXED);
}

static bool texts_fit(const struct idm_flow_record *record)
{
	uint64_t size = sizeof(*record) + record->method_size + record->host_size + record->path_size +
			record->protocol_size + record->sni_size + record->traceparent_size + record->headers_size;

	return size <= record->size && record->size - size < 8;
}

static bool headers_fit(const uint8_t *next, size_t size, uint32_t count)
{
	uint16_t sizes[2];

	for (; count; count--) {
		if (size < sizeof(sizes))
			return false;
		memcpy(sizes, next, sizeof(sizes));
		if (size - sizeof(sizes) < (size_t)sizes[0] + sizes[1])
			return false;
		next += sizeof(sizes) + sizes[0] + sizes[1];
		size -= sizeof(sizes) + sizes[0] + sizes[1];
	}
	return !size;
}

// A record as it was copied: of our version, and everything it counts lies within it.
static bool is_record(const uint8_t *copy, uint32_t size)
{
	struct idm_flow_record record;
	size_t before;

	memcpy(&record, copy, sizeof(record));
	if (record.size != size || record.version != IDM_FLOW_VERSION || !texts_fit(&record))
		return false;
	before = sizeof(record) + record.method_size + record.host_size + record.path_size + record.protocol_size +
		 record.sni_size + record.traceparent_size;
	return headers_fit(copy + before, record.headers_size, record.header_count);
}

// Copies one record. Its size, 0 if there is no room for it, -EBADMSG if it is none.
static int64_t take_one(const struct idm_ring_view *view, uint64_t available, uint8_t *room, size_t left)
{
	const uint8_t *place = view->map.data + (view->tail & (view->map.size - 1));
	uint32_t size;

	if (view->tail % 8)
		return -EBADMSG;
	// Read once: a second look could find another size than the one that was checked.
	size = __atomic_load_n((const uint32_t *)(const void *)place, __ATOMIC_RELAXED);
	if (size < sizeof(struct idm_flow_record) || size > IDM_RECORD_MAX || size % 8 || size > available)
		return -EBADMSG;
	if (size > left)
		return 0;
	memcpy(room, place, size);
	return is_record(room, size) ? (int64_t)size : -EBADMSG;
}

int64_t idm_ring_take(struct idm_ring_view *view, char *room, size_t room_size)
{
	uint64_t head = __atomic_load_n(&view->map.head->head, __ATOMIC_ACQUIRE);
	size_t used = 0;
	int64_t size = 1;

	if (head - view->tail > view->map.size)
		size = -EBADMSG;
	while (size > 0 && view->tail != head) {
		size = take_one(view, head - view->tail, (uint8_t *)room + used, room_size - used);
		if (size > 0) {
			view->tail += (uint64_t)size;
			used += (size_t)size;
		}
	}
	// What was read before the damage is handed out first; the next call then meets the damage again.
	if (size < 0 && !used)
		view->tail = head;
	__atomic_store_n(&view->map.head->tail, view->tail, __ATOMIC_RELEASE);
	return size < 0 && !used ? size : (int64_t)used;
}
