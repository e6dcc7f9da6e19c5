// SPDX-License-Identifier: Apache-2.0
// A ring's memory: its head once, its data twice.

#include <errno.h>
#include <sys/mman.h>

#include "ring.h"

_Static_assert(sizeof(struct idm_ring_head) <= IDM_RING_PAGE, "the head fits its page");
_Static_assert(sizeof(struct idm_flow_record) % 8 == 0, "records are multiples of 8");

bool ring_size_good(uint64_t data_size)
{
	return data_size >= IDM_RING_MIN && data_size <= IDM_RING_MAX && !(data_size & (data_size - 1));
}

static size_t span(uint32_t data_size)
{
	return IDM_RING_PAGE + 2 * (size_t)data_size;
}

static bool map_at(uint8_t *place, size_t size, int fd, off_t offset)
{
	return mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) != MAP_FAILED;
}

int ring_map(int fd, uint32_t data_size, struct ring_map *ret)
{
	uint8_t *place = mmap(NULL, span(data_size), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (place == MAP_FAILED)
		return -errno;
	if (!map_at(place, IDM_RING_PAGE + data_size, fd, 0) ||
	    !map_at(place + IDM_RING_PAGE + data_size, data_size, fd, IDM_RING_PAGE)) {
		int error = -errno;

		munmap(place, span(data_size));
		return error;
	}
	*ret = (struct ring_map){ (struct idm_ring_head *)place, place + IDM_RING_PAGE, data_size };
	return 0;
}

void ring_unmap(struct ring_map *map)
{
	munmap(map->head, span(map->size));
}
