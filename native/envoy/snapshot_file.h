/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot's file: watched, read whole into private memory, checked, and only then published. */
#ifndef IDMESH_ENVOY_SNAPSHOT_FILE_H
#define IDMESH_ENVOY_SNAPSHOT_FILE_H

#include <stdbool.h>
#include <sys/stat.h>

#include "idmesh/engine.h"

struct snapshot_file {
	char *path;
	struct stat seen; /* of the file last tried, good or bad */
	bool tried;
};

/* True if the file differs from the one last tried (or is there for the first time). */
bool snapshot_file_changed(const struct snapshot_file *file);

/**
 * Load the file and publish it. On failure the snapshot in force stays.
 * @return 0, or a negative errno with the reason in err.
 */
int snapshot_file_load(struct snapshot_file *file, struct idm_error *err);

#endif
