/* SPDX-License-Identifier: Apache-2.0 */
/* A flow ring with both its ends in one process, and its memory open to whoever means harm. */
#ifndef IDMESH_TESTS_RING_PAIR_H
#define IDMESH_TESTS_RING_PAIR_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "idmesh/flow.h"

#define CHECK(condition)                                                                             \
	do {                                                                                         \
		if (!(condition)) {                                                                  \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition); \
			exit(1);                                                                     \
		}                                                                                    \
	} while (0)
#define TEXT(literal) ((struct idm_bytes){literal, sizeof(literal) - 1})
#define SIZE IDM_RING_MIN

/* A ring with both ends open, and its memory as a third sees it. */
struct pair {
	struct idm_ring *ring;
	struct idm_ring_view *view;
	struct idm_ring_head *head;
	uint8_t *data;
};

static inline struct pair open_pair(void)
{
	struct pair pair = {.ring = idm_ring_create(SIZE, IDM_DOOR_MODULE, 3)};

	CHECK(pair.ring);
	CHECK(!idm_ring_open(idm_ring_fd(pair.ring), &pair.view));
	pair.head = mmap(NULL, IDM_RING_PAGE + SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, idm_ring_fd(pair.ring), 0);
	CHECK(pair.head != MAP_FAILED);
	pair.data = (uint8_t *)pair.head + IDM_RING_PAGE;
	return pair;
}

static inline void close_pair(struct pair *pair)
{
	munmap(pair->head, IDM_RING_PAGE + SIZE);
	idm_ring_close(pair->view);
	idm_ring_destroy(pair->ring);
}

static inline struct idm_flow_facts facts_of(struct idm_bytes path)
{
	struct idm_flow_facts facts = {.path = path};

	facts.fixed.type = IDM_FLOW_REQUEST;
	facts.fixed.door = IDM_DOOR_MODULE;
	facts.fixed.verdict = IDM_FORWARDED;
	return facts;
}

/* Room of its own, so that a write beyond it is seen. */
static inline int64_t take(struct pair *pair, char **room, size_t size)
{
	free(*room);
	*room = malloc(size);
	return idm_ring_take(pair->view, *room, size);
}

#endif
