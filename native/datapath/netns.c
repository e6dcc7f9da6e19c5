/* SPDX-License-Identifier: Apache-2.0 */
/* Calls in another network namespace: a thread that enters it and ends, so that no thread of the caller's moves. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>

#include "internal.h"

struct entry {
	int netns;
	int64_t (*call)(void *);
	void *argument;
	int64_t result;
};

static void *enter(void *argument)
{
	struct entry *entry = argument;

	entry->result = setns(entry->netns, CLONE_NEWNET) ? -errno : entry->call(entry->argument);
	return NULL;
}

int64_t idm_in_netns(int netns, int64_t (*call)(void *), void *argument)
{
	struct entry entry = {.netns = netns, .call = call, .argument = argument};
	pthread_t thread;
	int r;

	if (netns < 0)
		return call(argument);
	r = pthread_create(&thread, NULL, enter, &entry);
	if (r)
		return -r;
	pthread_join(thread, NULL);
	return entry.result;
}
