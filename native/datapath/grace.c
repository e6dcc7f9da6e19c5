/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for programs that may still read what was replaced. The kernel promises it for a map in a map: when the
 * update of the outer one returns, every program that could have read the old inner one has ended (kernel/bpf/syscall.c,
 * maybe_wait_bpf_programs: a whole RCU grace period; BPF programs of our hooks run under the RCU read lock). So we
 * replace the inner map of a private pair, on a thread of its own: publishing does not wait for it, the next one does.
 * membarrier(MEMBARRIER_CMD_GLOBAL) would do the same, but not on one CPU, nor with nohz_full.
 */
#include <bpf/bpf.h>
#include <errno.h>
#include <unistd.h>

#include "internal.h"

void idm_grace_init(struct idm_grace *grace)
{
	*grace = (struct idm_grace){.outer = -1, .inner = -1};
}

static int make_maps(struct idm_grace *grace)
{
	DECLARE_LIBBPF_OPTS(bpf_map_create_opts, options);

	if (grace->outer >= 0)
		return 0;
	if (grace->inner < 0)
		grace->inner = bpf_map_create(BPF_MAP_TYPE_ARRAY, "idmesh_grace", 4, 4, 1, NULL);
	if (grace->inner < 0)
		return grace->inner;
	options.inner_map_fd = (uint32_t)grace->inner;
	grace->outer = bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "idmesh_graces", 4, 4, 1, &options);
	return grace->outer < 0 ? grace->outer : 0;
}

static int wait_here(struct idm_grace *grace)
{
	uint32_t key = 0;
	int r = make_maps(grace);

	if (r)
		return r;
	return bpf_map_update_elem(grace->outer, &key, &grace->inner, BPF_ANY) ? -errno : 0;
}

static void *wait_aside(void *argument)
{
	return (void *)(intptr_t)wait_here(argument);
}

void idm_grace_start(struct idm_grace *grace)
{
	grace->passed = false;
	grace->running = !pthread_create(&grace->thread, NULL, wait_aside, grace);
}

static int join(struct idm_grace *grace)
{
	void *result;

	if (!grace->running)
		return 0;
	grace->running = false;
	if (pthread_join(grace->thread, &result))
		return -EDEADLK;
	grace->passed = !result;
	return (int)(intptr_t)result;
}

int idm_grace_wait(struct idm_grace *grace)
{
	int r = join(grace);

	if (r || grace->passed)
		return r;
	// No thread was to be had, or this process has not published yet: the pins may be a dead one's, so wait now.
	return idm_grace_now(grace);
}

int idm_grace_now(struct idm_grace *grace)
{
	int r = join(grace);

	r = r ? r : wait_here(grace);
	grace->passed = !r;
	return r;
}

void idm_grace_deinit(struct idm_grace *grace)
{
	join(grace);
	if (grace->outer >= 0)
		close(grace->outer);
	if (grace->inner >= 0)
		close(grace->inner);
	idm_grace_init(grace);
}

int idm_datapath_grace(struct idm_datapath *datapath)
{
	return idm_grace_now(&datapath->grace);
}
