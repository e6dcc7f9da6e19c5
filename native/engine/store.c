/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing by swapping one pointer. Readers announce the epoch in which they look; what was replaced is freed when
 * every reader that may still hold it has left. A reader does two stores and two loads and never waits; only the
 * publisher and the coming and going of readers take the lock.
 *
 * Why it is safe: all four accesses are sequentially consistent. A replaced snapshot is tagged with the epoch that
 * was counted up after the swap. A reader that announced an earlier epoch keeps it alive; one that announced a later
 * epoch, or whose announcement the publisher did not yet see, loads the pointer after the swap.
 */
#include <pthread.h>
#include <stdlib.h>

#include "internal.h"

struct idm_reader {
	_Atomic uint64_t epoch; // in which it entered; 0: outside
	_Atomic uint64_t seen;  // revision + 1 at the last entry; 0: none yet
	struct idm_store *store;
	struct idm_reader *next;
	// Only the reader's own.
	const struct idm_snapshot *held;
	uint32_t depth;
} __attribute__((aligned(64)));

struct retired {
	struct idm_snapshot *snapshot;
	uint64_t epoch; // readers of this epoch on cannot hold it
	struct retired *next;
};

struct idm_store {
	_Atomic(struct idm_snapshot *) current;
	_Atomic uint64_t epoch;
	pthread_mutex_t lock; // readers and retired
	struct idm_reader *readers;
	struct retired *retired;
};

struct idm_store *idm_store_create(void)
{
	struct idm_store *store = calloc(1, sizeof(*store));

	if (!store)
		return NULL;
	if (pthread_mutex_init(&store->lock, NULL)) {
		free(store);
		return NULL;
	}
	atomic_init(&store->epoch, 1);
	return store;
}

// Lowest epoch in which a reader is inside; UINT64_MAX if none is.
static uint64_t oldest_epoch(struct idm_store *store)
{
	uint64_t oldest = UINT64_MAX;

	for (struct idm_reader *reader = store->readers; reader; reader = reader->next) {
		uint64_t epoch = atomic_load(&reader->epoch);

		if (epoch && epoch < oldest)
			oldest = epoch;
	}
	return oldest;
}

static void reclaim(struct idm_store *store)
{
	uint64_t oldest = oldest_epoch(store);
	struct retired **link = &store->retired;

	while (*link) {
		struct retired *retired = *link;

		if (retired->epoch > oldest) {
			link = &retired->next;
			continue;
		}
		*link = retired->next;
		idm_snapshot_unref(retired->snapshot);
		free(retired);
	}
}

void idm_store_destroy(struct idm_store *store)
{
	if (!store)
		return;
	reclaim(store);
	idm_snapshot_unref(atomic_load(&store->current));
	pthread_mutex_destroy(&store->lock);
	free(store);
}

void idm_store_publish(struct idm_store *store, struct idm_snapshot *snapshot)
{
	struct retired *retired = malloc(sizeof(*retired));
	struct idm_snapshot *old = atomic_exchange(&store->current, snapshot);
	uint64_t epoch = atomic_fetch_add(&store->epoch, 1) + 1;

	pthread_mutex_lock(&store->lock);
	// Without memory for the note the old snapshot is leaked: that harms nobody who still reads it.
	if (old && retired) {
		*retired = (struct retired){.snapshot = old, .epoch = epoch, .next = store->retired};
		store->retired = retired;
		retired = NULL;
	}
	free(retired);
	reclaim(store);
	pthread_mutex_unlock(&store->lock);
}

struct idm_snapshot *idm_store_current(struct idm_store *store)
{
	struct idm_snapshot *snapshot = atomic_load(&store->current);

	if (snapshot)
		idm_snapshot_ref(snapshot);
	return snapshot;
}

uint64_t idm_store_readers_revision(struct idm_store *store)
{
	uint64_t lowest = UINT64_MAX;

	pthread_mutex_lock(&store->lock);
	for (struct idm_reader *reader = store->readers; reader; reader = reader->next) {
		uint64_t seen = atomic_load(&reader->seen);

		if (seen && seen - 1 < lowest)
			lowest = seen - 1;
	}
	reclaim(store);
	pthread_mutex_unlock(&store->lock);
	return lowest == UINT64_MAX ? 0 : lowest;
}

struct idm_reader *idm_reader_create(struct idm_store *store)
{
	struct idm_reader *reader = aligned_alloc(64, sizeof(*reader));

	if (!reader)
		return NULL;
	memset(reader, 0, sizeof(*reader));
	reader->store = store;
	pthread_mutex_lock(&store->lock);
	reader->next = store->readers;
	store->readers = reader;
	pthread_mutex_unlock(&store->lock);
	return reader;
}

void idm_reader_destroy(struct idm_reader *reader)
{
	struct idm_store *store;

	if (!reader)
		return;
	store = reader->store;
	pthread_mutex_lock(&store->lock);
	for (struct idm_reader **link = &store->readers; *link; link = &(*link)->next) {
		if (*link == reader) {
			*link = reader->next;
			break;
		}
	}
	reclaim(store);
	pthread_mutex_unlock(&store->lock);
	free(reader);
}

const struct idm_snapshot *idm_reader_enter(struct idm_reader *reader)
{
	// Entering twice keeps the first snapshot, so that nested decisions agree.
	if (reader->depth++)
		return reader->held;
	atomic_store(&reader->epoch, atomic_load(&reader->store->epoch));
	reader->held = atomic_load(&reader->store->current);
	atomic_store_explicit(&reader->seen, (reader->held ? reader->held->revision : 0) + 1, memory_order_relaxed);
	return reader->held;
}

void idm_reader_leave(struct idm_reader *reader)
{
	if (--reader->depth)
		return;
	reader->held = NULL;
	atomic_store_explicit(&reader->epoch, 0, memory_order_release);
}
