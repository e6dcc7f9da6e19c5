/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile producer: arbitrary bytes as a ring's head and data. Whatever is there, the consumer hands out whole records
 * or skips to the producer's head, and counts them without leaving its own memory; and a producer whose consumer wrote
 * that same memory goes on unharmed.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "idmesh/counts.h"
#include "idmesh/flow.h"

#define SIZE IDM_RING_MIN
#define ROOM (2 * IDM_RECORD_MAX)

static struct idm_ring *ring;
static struct idm_ring_head *head;
static struct idm_counter *counter;

static void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	ring = idm_ring_create(SIZE, IDM_DOOR_MODULE, 0);
	counter = idm_counter_create();
	if (!ring || !counter)
		fail("no ring");
	head = mmap(NULL, IDM_RING_PAGE + SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, idm_ring_fd(ring), 0);
	if (head == MAP_FAILED)
		fail("no memory");
	return 0;
}

// Every text and header of a record that was handed out lies within it.
static void check_record(const char *bytes)
{
	struct idm_flow_record record;
	const char *at = bytes + sizeof(record), *end;

	memcpy(&record, bytes, sizeof(record));
	at += record.method_size + record.host_size + record.path_size + record.protocol_size + record.sni_size +
	      record.traceparent_size;
	end = at + record.headers_size;
	if (end > bytes + record.size)
		fail("texts leave the record");
	for (uint32_t i = 0; i < record.header_count; i++) {
		uint16_t sizes[2];

		if (end - at < (long)sizeof(sizes))
			fail("a header leaves the headers");
		memcpy(sizes, at, sizeof(sizes));
		at += sizeof(sizes) + sizes[0] + sizes[1];
	}
	if (at > end)
		fail("headers leave the record");
}

static void read_all(struct idm_ring_view *view)
{
	char *room = malloc(ROOM); // of its own, so that a write beyond it is seen
	int64_t size;

	for (int turn = 0; turn < 64; turn++) {
		size = idm_ring_take(view, room, ROOM);
		if (size <= 0)
			break;
		if (size > ROOM)
			fail("more than there is room for");
		idm_counter_add(counter, room, (size_t)size);
		for (int64_t at = 0; at < size;) {
			uint32_t one;

			memcpy(&one, room + at, sizeof(one));
			if (one < sizeof(struct idm_flow_record) || one > size - at)
				fail("not a record");
			check_record(room + at);
			at += one;
		}
	}
	free(room);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct idm_flow_facts facts = {.fixed.type = IDM_FLOW_END};
	struct idm_ring_view *view;
	uint64_t numbers[2] = {0};
	size_t given = size < sizeof(numbers) ? size : sizeof(numbers);

	memcpy(numbers, data, given);
	data += given;
	size -= given;
	if (size > SIZE)
		size = SIZE;
	// Mostly what could be: a tail somewhere, a head not far ahead of it.
	head->tail = numbers[0] & 1 ? numbers[0] : numbers[0] % (4 * SIZE);
	head->head = numbers[1] & 1 ? numbers[1] : head->tail + numbers[1] % (SIZE + 16);
	for (size_t i = 0; i < size; i++)
		((uint8_t *)head)[IDM_RING_PAGE + (head->tail + i) % SIZE] = data[i];
	if (idm_ring_open(idm_ring_fd(ring), &view))
		fail("a ring of ours is refused");
	read_all(view);
	idm_ring_put(ring, &facts);
	idm_ring_close(view);
	return 0;
}
