/* SPDX-License-Identifier: Apache-2.0 */
/* The sound snapshots that fuzzers ask: those of the folder IDMESH_SEEDS. */
#ifndef IDMESH_FUZZ_SEEDS_H
#define IDMESH_FUZZ_SEEDS_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "idmesh/engine.h"

#define SEEDS_MAX 31

static void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	abort();
}

static struct idm_snapshot *seed_load(const char *path)
{
	static char data[1 << 20];
	struct idm_snapshot *snapshot;
	struct idm_error error;
	FILE *file = fopen(path, "rb");
	size_t size;

	if (!file)
		fail(path);
	size = fread(data, 1, sizeof(data), file);
	fclose(file);
	if (idm_snapshot_load(data, size, NULL, &snapshot, &error))
		fail(error.message);
	return snapshot;
}

/* Hands each of them (SEEDS_MAX at most) to `add`, which owns it then. Ends the program if there is none. */
static void seeds_each(void (*add)(struct idm_snapshot *snapshot))
{
	const char *folder = getenv("IDMESH_SEEDS");
	DIR *dir = folder ? opendir(folder) : NULL;
	struct dirent *item;
	int count = 0;

	if (!dir)
		fail("IDMESH_SEEDS must name the folder of seed snapshots");
	while ((item = readdir(dir)) && count < SEEDS_MAX) {
		char path[4096];

		if (!strstr(item->d_name, ".snapshot"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, item->d_name);
		add(seed_load(path));
		count++;
	}
	closedir(dir);
	if (!count)
		fail("no seed snapshot");
}

#endif
