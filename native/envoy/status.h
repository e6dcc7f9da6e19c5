/* SPDX-License-Identifier: Apache-2.0 */
/*
 * STATE/readers/<pid>.json: which revision this Envoy decides with, for `idmesh apply --wait` and `idmesh status`.
 *
 * A published snapshot is in force at once: each worker takes the current one at the start of every decision, so
 * `revision` is what every request after this write is judged by. `oldest_decision` is the lowest revision that
 * some worker used for its latest decision; an idle worker keeps it behind and matters to nobody. `flows` counts flow
 * records; null: this Envoy writes none. `counts` counts decisions by how they ended.
 */
#ifndef IDMESH_ENVOY_STATUS_H
#define IDMESH_ENVOY_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#include "tally.h"

struct status {
	char *directory;
	char *path;
	char *part; /* written first, then renamed */
	bool ready;
	bool failed; /* last write; said once */
	uint64_t revision;
	uint64_t oldest;
	uint64_t rejected;
	double in_force_since; /* unix time of `revision` */
	bool flows; /* there are rings; the two counts are sums over them */
	uint64_t flows_written;
	uint64_t flows_lost;
	struct tally tally;
	uint32_t workers;
	char digest[65];
	char error[256];
};

/* state is the state directory; the readers' directory is made at the first write. */
bool status_init(struct status *ret, const char *state);
void status_deinit(struct status *status);
/* A revision has come in force, now. */
void status_set_revision(struct status *status, uint64_t revision, const uint8_t digest[32]);
/* True if something changed that is worth writing. */
bool status_refresh(struct status *status, uint64_t oldest);
/* As status_refresh(). */
bool status_set_flows(struct status *status, uint64_t written, uint64_t lost);
/* As status_refresh(). */
bool status_set_tally(struct status *status, const struct tally *tally);
/* False when a write fails that did not fail before; errno says why. */
bool status_write(struct status *status);
void status_remove(struct status *status);

#endif
