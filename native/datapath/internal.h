/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the loader's files share. A slot has a shadow here: what its maps hold in the kernel, so that a new revision
 * costs what it differs in, and nothing has to be asked back.
 */
#ifndef IDMESH_DATAPATH_INTERNAL_H
#define IDMESH_DATAPATH_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "idmesh/datapath.h"
#include "idmesh/datapath_loader.h"

#include "lists.h"
#include "rows.h"

#define IDM_PROGRAMS_MAX 64
#define IDM_MAPS_MAX 64
#define IDM_SLOTS 2

struct idm_map {
	char name[IDM_DATAPATH_NAME];
	int fd;
	uint32_t id, type, key_size, value_size, rows;
};

struct idm_program {
	char name[IDM_DATAPATH_NAME];
	int fd;
};

struct idm_slot {
	struct idm_rows *endpoints; // shared with the other slot where both hold the same
	struct idm_rows *prefixes;
	struct idm_rows *peers;
	struct idm_side_row *sides; // sides_max of them
	bool unsure;                // a write failed midway: read back before it is written again
};

/* Waits for programs that may still read what was replaced; see grace.c. */
struct idm_grace {
	int outer, inner; // maps, or -1
	pthread_t thread;
	bool running;
	bool passed; // since the last start
};

/* Addresses of workloads attached here, to the host side of their veth. */
struct idm_place {
	struct idm_address address;
	uint32_t ifindex;
};

struct idm_datapath {
	char *pins;
	struct idm_map maps[IDM_MAPS_MAX];
	uint32_t map_count;
	struct idm_program programs[IDM_PROGRAMS_MAX];
	uint32_t program_count;
	struct {
		char map[IDM_DATAPATH_NAME];
		uint32_t rows;
	} sizes[IDM_MAPS_MAX];
	uint32_t size_count;

	bool recovered;
	struct idm_state state;
	struct idm_slot slots[IDM_SLOTS];
	struct idm_store_of_lists lists;
	uint32_t sides_max;
	struct idm_grace grace;
	struct idm_place *places; // rising by address
	uint32_t place_count, place_room;

	// What the endpoints of the last publishing were made from.
	struct idm_rows *endpoints;
	struct idm_rows *prefixes;
	uint8_t endpoints_of[32], prefixes_of[32]; // digests
	uint32_t *endpoint_policies;
	uint32_t endpoint_count;

	void *ring;
	struct {
		uint8_t *at;
		size_t left;
	} drain;
};

int idm_say(struct idm_datapath_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The map, or NULL. */
struct idm_map *idm_map_find(struct idm_datapath *datapath, const char *name);
/* The map of a slot: NAME_0 or NAME_1. */
struct idm_map *idm_map_of(struct idm_datapath *datapath, const char *name, uint32_t slot);

/* Run in a network namespace, on a thread of its own; -1: right here. */
int64_t idm_in_netns(int netns, int64_t (*call)(void *), void *argument);

void idm_grace_init(struct idm_grace *grace);
/* Starts waiting; returns at once. */
void idm_grace_start(struct idm_grace *grace);
/* Returns when no program reads what was in force before the last start. */
int idm_grace_wait(struct idm_grace *grace);
/* The same for whatever was replaced before the call. */
int idm_grace_now(struct idm_grace *grace);
void idm_grace_deinit(struct idm_grace *grace);

/* ifindex of an address's veth, or 0. */
uint32_t idm_place_of(const struct idm_datapath *datapath, const struct idm_address *address);
int idm_place_set(struct idm_datapath *datapath, const struct idm_address *address, uint32_t ifindex);

/* Read one slot's tables back; its lists are registered for it. */
int idm_slot_read(struct idm_datapath *datapath, uint32_t slot, struct idm_datapath_error *err);
void idm_slot_clear(struct idm_slot *slot);

/* Kernel errors as people understand them. */
const char *idm_meaning(int code);

#endif
