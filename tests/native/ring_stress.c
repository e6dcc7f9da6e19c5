/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Producer and consumer at once, for the thread sanitizer: nothing arrives torn, twice or out of order, and what does
 * not arrive is counted. Then the same while a third scribbles over the memory they share: both live on.
 * Usage: ring_stress SECONDS.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "idmesh/flow.h"

#define SIZE IDM_RING_MIN

static struct idm_ring *ring;
static atomic_bool done, hostile;

static void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

// The path's length and bytes follow from the record's number.
static struct idm_bytes path_of(uint64_t number, char room[IDM_RECORD_PATH_MAX])
{
	size_t size = number * 31 % IDM_RECORD_PATH_MAX;

	memset(room, (int)(number & 0x7f), size);
	return (struct idm_bytes){room, size};
}

static void *produce(void *unused)
{
	char room[IDM_RECORD_PATH_MAX];
	uint64_t number = 0;

	(void)unused;
	while (!atomic_load(&done)) {
		struct idm_flow_facts facts = {.path = path_of(number, room)};

		facts.fixed.revision = number++;
		idm_ring_put(ring, &facts);
	}
	return NULL;
}

static void check(const char *bytes, uint64_t *next)
{
	char room[IDM_RECORD_PATH_MAX];
	struct idm_flow_record record;
	struct idm_bytes path;

	memcpy(&record, bytes, sizeof(record));
	if (record.revision < *next)
		fail("twice, or out of order");
	*next = record.revision + 1;
	path = path_of(record.revision, room);
	if (record.path_size != path.size || memcmp(bytes + sizeof(record), path.ptr, path.size))
		fail("a torn record");
}

static uint64_t consume_some(struct idm_ring_view *view, uint64_t *next)
{
	static char room[16 * IDM_RECORD_MAX];
	int64_t size = idm_ring_take(view, room, sizeof(room));
	uint64_t count = 0;

	if (size < 0 && !atomic_load(&hostile))
		fail("damage, though nobody did any");
	for (int64_t at = 0; at < size; count++) {
		uint32_t one;

		memcpy(&one, room + at, sizeof(one));
		if (!atomic_load(&hostile))
			check(room + at, next);
		at += one;
	}
	return count;
}

static void *scribble(void *unused)
{
	uint8_t *memory = mmap(NULL, IDM_RING_PAGE + SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, idm_ring_fd(ring), 0);
	uint64_t state = 1;

	(void)unused;
	while (!atomic_load(&done)) {
		state = state * 6364136223846793005ull + 1442695040888963407ull;
		if (state >> 63)
			memory[(state >> 20) % (IDM_RING_PAGE + SIZE)] = (uint8_t)(state >> 40);
		else
			memory[(state >> 20) % sizeof(struct idm_ring_head)] ^= (uint8_t)(1 << (state >> 40 & 7));
	}
	munmap(memory, IDM_RING_PAGE + SIZE);
	return NULL;
}

static uint64_t read_for(int seconds, void *(*other)(void *))
{
	time_t end = time(NULL) + seconds;
	struct idm_ring_view *view;
	pthread_t threads[2];
	uint64_t next = 0, count = 0;

	ring = idm_ring_create(SIZE, IDM_DOOR_MODULE, 0);
	if (!ring || idm_ring_open(idm_ring_fd(ring), &view))
		fail("no ring");
	atomic_store(&done, false);
	pthread_create(&threads[0], NULL, produce, NULL);
	if (other)
		pthread_create(&threads[1], NULL, other, NULL);
	while (time(NULL) < end)
		count += consume_some(view, &next);
	atomic_store(&done, true);
	pthread_join(threads[0], NULL);
	if (other)
		pthread_join(threads[1], NULL);
	for (uint64_t more = 1; more && !other; count += more)
		more = consume_some(view, &next);
	if (!other && (count != idm_ring_written(ring) || next > count + idm_ring_lost(ring)))
		fail("what was written and what was lost is not what was read");
	idm_ring_close(view);
	idm_ring_destroy(ring);
	return count;
}

int main(int argc, char **argv)
{
	int seconds = argc > 1 ? atoi(argv[1]) : 2;
	uint64_t count = read_for(seconds, NULL);

	if (!count)
		fail("nothing was read");
	atomic_store(&hostile, true);
	read_for(seconds, scribble);
	printf("flow ring: ok, %llu records read\n", (unsigned long long)count);
	return 0;
}
