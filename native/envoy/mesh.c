// SPDX-License-Identifier: Apache-2.0
// The process-wide store of snapshots and the list of what to judge again.

#include "mesh.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static struct idm_store *store;
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mesh_open open_list = {&open_list, &open_list, NULL, NULL, 0};
static size_t ending; // those of the list that end, also under the lock
// Made at a thread's first decision: Envoy does not tell us of its workers one by one.
static __thread struct idm_reader *reader;

bool mesh_create(void)
{
	if (store)
		return false;
	store = idm_store_create();
	return store;
}

bool mesh_required(struct idm_error *why)
{
	// --mode validate makes no bootstrap extensions.
	if (store || CALLBACK(is_validation_mode)())
		return true;
	snprintf(why->message, sizeof(why->message),
		 "the bootstrap extension of idmesh is not configured: nothing would load policies");
	return false;
}

void mesh_publish(struct idm_snapshot *snapshot)
{
	idm_store_publish(store, snapshot);
	pthread_mutex_lock(&open_lock);
	for (struct mesh_open *open = open_list.next; open != &open_list; open = open->next)
		open->again(open->subject);
	pthread_mutex_unlock(&open_lock);
}

struct idm_snapshot *mesh_current(void)
{
	return idm_store_current(store);
}

uint64_t mesh_oldest_revision(void)
{
	return idm_store_readers_revision(store);
}

const struct idm_snapshot *mesh_enter(void)
{
	if (__builtin_expect(!reader, 0)) {
		reader = store ? idm_reader_create(store) : NULL;
		if (!reader)
			return NULL;
	}
	return idm_reader_enter(reader);
}

void mesh_leave(void)
{
	if (reader)
		idm_reader_leave(reader);
}

void mesh_open_add(struct mesh_open *open, void (*again)(void *), void *subject)
{
	open->again = again;
	open->subject = subject;
	pthread_mutex_lock(&open_lock);
	open->next = &open_list;
	open->previous = open_list.previous;
	open->previous->next = open;
	open_list.previous = open;
	pthread_mutex_unlock(&open_lock);
}

void mesh_open_remove(struct mesh_open *open)
{
	if (!open->next)
		return;
	pthread_mutex_lock(&open_lock);
	ending -= open->ends_ms != 0;
	open->ends_ms = 0;
	open->next->previous = open->previous;
	open->previous->next = open->next;
	pthread_mutex_unlock(&open_lock);
	open->next = NULL;
}

void mesh_open_ends(struct mesh_open *open, uint64_t when_ms)
{
	if (open->ends_ms == when_ms)
		return;
	pthread_mutex_lock(&open_lock);
	ending += (when_ms != 0) - (open->ends_ms != 0);
	open->ends_ms = when_ms;
	pthread_mutex_unlock(&open_lock);
}

void mesh_end(void)
{
	struct timespec now;
	uint64_t now_ms;

	clock_gettime(CLOCK_REALTIME, &now);
	now_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
	pthread_mutex_lock(&open_lock);
	for (struct mesh_open *open = open_list.next; ending && open != &open_list; open = open->next)
		if (open->ends_ms && open->ends_ms <= now_ms)
			open->again(open->subject);
	pthread_mutex_unlock(&open_lock);
}

void mesh_log(enum envoy_log_level level, const char *format, ...)
{
	char line[1024];
	va_list args;
	int size, head = snprintf(line, sizeof(line), "idmesh: ");

	va_start(args, format);
	size = vsnprintf(line + head, sizeof(line) - (size_t)head, format, args);
	va_end(args);
	if (size < 0)
		return;
	CALLBACK(log)(level, (struct idm_bytes){line, strlen(line)});
}
