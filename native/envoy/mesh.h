/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all filters of the process share: the snapshot in force, and the connections to judge again when it changes.
 *
 * There is one mesh a process, made by the bootstrap extension and never taken down: workers may still decide
 * while Envoy shuts down, and the process's end frees it.
 */
#ifndef IDMESH_ENVOY_MESH_H
#define IDMESH_ENVOY_MESH_H

#include <stdarg.h>
#include <stdbool.h>

#include "abi.h"

#define MESH_KEY IDM_TEXT("idmesh")
#define IDM_TEXT(literal) ((struct idm_bytes){literal, sizeof(literal) - 1})

/* Main thread. False if there is one already or memory is short. */
bool mesh_create(void);
/* For filters' configurations: false, with the reason, if nothing loads snapshots in this process. */
bool mesh_required(struct idm_error *why);

/* Main thread. Takes over the reference; asks every open stream and connection to be judged again. */
void mesh_publish(struct idm_snapshot *snapshot);
/* Main thread. A reference, or NULL. */
struct idm_snapshot *mesh_current(void);
/* Lowest revision any thread decided with at its last decision. */
uint64_t mesh_oldest_revision(void);

/* Any thread. NULL: no snapshot, deny. Each enter is followed by one leave; they do not nest. */
const struct idm_snapshot *mesh_enter(void);
void mesh_leave(void);

/* Something that lives on while policies change. `again` is called with `subject` on the main thread. */
struct mesh_open {
	struct mesh_open *next;
	struct mesh_open *previous;
	void (*again)(void *subject);
	void *subject;
	uint64_t ends_ms; /* unix time when the evidence of its peer ends; 0: never */
};
void mesh_open_add(struct mesh_open *open, void (*again)(void *), void *subject);
/* Afterwards `again` is not running and will not be called. No-op if it was never added. */
void mesh_open_remove(struct mesh_open *open);
/* It was added: judge it again at that unix time, or within a second of it. 0: never. */
void mesh_open_ends(struct mesh_open *open, uint64_t when_ms);
/* Main thread, each second: have all judged again whose peer's evidence has ended. */
void mesh_end(void);

/* Into Envoy's log, as "idmesh: ...". */
__attribute__((format(printf, 2, 3))) void mesh_log(enum envoy_log_level level, const char *format, ...);

#endif
