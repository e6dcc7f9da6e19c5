// SPDX-License-Identifier: Apache-2.0
// The bootstrap extension: keeps the snapshot in force up to date and says which one that is.
//
// All of it runs on Envoy's main thread. A rename in the state directory comes as an event within a millisecond;
// a slow poll catches what the watch cannot see (a directory made later, a watch that failed).

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "mesh.h"
#include "rings.h"
#include "snapshot_file.h"
#include "status.h"

#define POLL_MS 1000
#define SNAPSHOT_NAME "snapshot"
#define FLOWS_NAME "flows.sock"

struct bootstrap {
	struct envoy_bootstrap_config *envoy;
	struct envoy_timer *timer;
	struct snapshot_file file;
	struct status status;
	bool watched;
	bool missing_said;
	uint32_t ring_bytes; // 0: no flow records
	char *flows_path;
	int offer_error; // of the last offer; said once
	size_t flows_written_counter;
	size_t flows_lost_counter;
	size_t revision_gauge;
	size_t ready_gauge;
	size_t loaded_counter;
	size_t rejected_counter;
};

static void count(struct bootstrap *self, size_t id, uint64_t by)
{
	CALLBACK(bootstrap_extension_config_increment_counter)(self->envoy, id, NULL, 0, by);
}

static void show(struct bootstrap *self)
{
	CALLBACK(bootstrap_extension_config_set_gauge)(self->envoy, self->revision_gauge, NULL, 0,
						       self->status.revision);
	CALLBACK(bootstrap_extension_config_set_gauge)(self->envoy, self->ready_gauge, NULL, 0, self->status.ready);
	if (!status_write(&self->status))
		mesh_log(ENVOY_WARN, "cannot write %s: %s", self->status.path, strerror(errno));
}

static void accepted(struct bootstrap *self)
{
	struct idm_snapshot *now = mesh_current();

	self->status.error[0] = 0;
	status_set_revision(&self->status, idm_snapshot_revision(now), idm_snapshot_digest(now));
	idm_snapshot_unref(now);
	count(self, self->loaded_counter, 1);
	mesh_log(ENVOY_INFO, "revision %llu in force, digest %s", (unsigned long long)self->status.revision,
		 self->status.digest);
	show(self);
}

static void rejected(struct bootstrap *self, const struct idm_error *err)
{
	self->status.rejected++;
	snprintf(self->status.error, sizeof(self->status.error), "%s", err->message);
	count(self, self->rejected_counter, 1);
	if (self->status.ready)
		mesh_log(ENVOY_ERROR, "snapshot refused, revision %llu stays in force: %s",
			 (unsigned long long)self->status.revision, err->message);
	else
		mesh_log(ENVOY_ERROR, "snapshot refused, everything is denied: %s", err->message);
	show(self);
}

static void missing(struct bootstrap *self)
{
	if (self->missing_said)
		return;
	self->missing_said = true;
	if (self->status.ready)
		mesh_log(ENVOY_WARN, "%s is gone; revision %llu stays in force", self->file.path,
			 (unsigned long long)self->status.revision);
	else
		mesh_log(ENVOY_WARN, "no snapshot at %s yet: everything is denied", self->file.path);
	show(self);
}

static void look(struct bootstrap *self)
{
	struct idm_error err = {{0}};
	int ret;

	if (access(self->file.path, F_OK)) {
		missing(self);
		return;
	}
	self->missing_said = false;
	if (!snapshot_file_changed(&self->file))
		return;
	ret = snapshot_file_load(&self->file, &err);
	if (ret == -ENOENT)
		return;
	if (ret)
		rejected(self, &err);
	else
		accepted(self);
}

static void watch(struct bootstrap *self)
{
	struct idm_bytes path = {self->file.path, strlen(self->file.path)};

	if (!self->watched)
		self->watched = CALLBACK(bootstrap_extension_file_watcher_add_watch)(self->envoy, path,
										     ENVOY_FILE_MOVED);
}

// --- flow records ---

static void offer(struct bootstrap *self)
{
	int ret = rings_offer(self->flows_path);

	if (ret > 0)
		mesh_log(ENVOY_INFO, "flow records handed over at %s", self->flows_path);
	if (ret < 0 && ret != self->offer_error)
		mesh_log(ENVOY_WARN, "flow records: %s: %s", self->flows_path, strerror(-ret));
	self->offer_error = ret < 0 ? ret : 0;
}

// True if the status changed.
static bool count_flows(struct bootstrap *self)
{
	uint64_t written, lost, written_before = self->status.flows_written, lost_before = self->status.flows_lost;

	if (!rings_count(&written, &lost))
		return false;
	if (written != written_before)
		count(self, self->flows_written_counter, written - written_before);
	if (lost != lost_before)
		count(self, self->flows_lost_counter, lost - lost_before);
	return status_set_flows(&self->status, written, lost);
}

// One ring for each worker, and one for the main thread should it ever decide. Without memory for them nothing is
// recorded, and everything decided.
static void start_flows(struct bootstrap *self)
{
	if (!self->ring_bytes)
		return;
	if (!rings_create(self->ring_bytes, CALLBACK(get_concurrency)() + 1)) {
		mesh_log(ENVOY_ERROR, "no flow records: %s", strerror(errno));
		return;
	}
	count_flows(self);
	offer(self);
}

// --- configuration ---

static char *join(const char *directory, const char *name)
{
	size_t size = strlen(directory) + strlen(name) + 2;
	char *path = malloc(size);

	if (path)
		snprintf(path, size, "%s/%s", directory, name);
	return path;
}

static char *parent(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

static bool set_paths(struct bootstrap *self, char *state, char *snapshot, struct idm_error *why)
{
	char *directory;

	if (!state == !snapshot) {
		snprintf(why->message, sizeof(why->message), "state or snapshot: exactly one is needed");
		return false;
	}
	if ((state ? state : snapshot)[0] != '/') {
		snprintf(why->message, sizeof(why->message), "%s: must be an absolute path", state ? "state" : "snapshot");
		return false;
	}
	directory = state ? strdup(state) : parent(snapshot);
	self->file.path = state ? join(state, SNAPSHOT_NAME) : strdup(snapshot);
	self->flows_path = directory ? join(directory, FLOWS_NAME) : NULL;
	if (!self->flows_path || !self->file.path || !status_init(&self->status, directory)) {
		snprintf(why->message, sizeof(why->message), "out of memory");
		free(directory);
		return false;
	}
	free(directory);
	return true;
}

#define RING_BYTES_UNSET UINT64_MAX
_Static_assert(IDM_RING_MIN == 65536 && IDM_RING_MAX == 268435456, "the message says so");

static bool set_ring_bytes(struct bootstrap *self, uint64_t bytes, bool state, struct idm_error *why)
{
	if (bytes == RING_BYTES_UNSET)
		bytes = state ? IDM_RING_DEFAULT : 0;
	if (bytes && (bytes < IDM_RING_MIN || bytes > IDM_RING_MAX || bytes & (bytes - 1))) {
		snprintf(why->message, sizeof(why->message),
			 "flow_ring_bytes: must be 0 (no flow records) or a power of two from 65536 to 268435456");
		return false;
	}
	self->ring_bytes = (uint32_t)bytes;
	return true;
}

static bool configure(struct bootstrap *self, struct idm_bytes config, struct idm_error *why)
{
	char *state = NULL, *snapshot = NULL;
	uint64_t ring_bytes = RING_BYTES_UNSET;
	const struct json_field fields[] = {
		{"state", JSON_TEXT, &state},
		{"snapshot", JSON_TEXT, &snapshot},
		{"flow_ring_bytes", JSON_NUMBER, &ring_bytes},
	};
	bool good = json_read(config, fields, sizeof(fields) / sizeof(*fields), why) &&
		    set_paths(self, state, snapshot, why) && set_ring_bytes(self, ring_bytes, state, why);

	free(state);
	free(snapshot);
	return good;
}

static void destroy(struct bootstrap *self)
{
	if (self->timer)
		CALLBACK(bootstrap_extension_timer_delete)(self->timer);
	status_deinit(&self->status);
	free(self->flows_path);
	free(self->file.path);
	free(self);
}

static bool define(struct bootstrap *self)
{
	struct envoy_bootstrap_config *envoy = self->envoy;

	return !CALLBACK(bootstrap_extension_config_define_gauge)(envoy, IDM_TEXT("revision"), NULL, 0,
								  &self->revision_gauge) &&
	       !CALLBACK(bootstrap_extension_config_define_gauge)(envoy, IDM_TEXT("ready"), NULL, 0,
								  &self->ready_gauge) &&
	       !CALLBACK(bootstrap_extension_config_define_counter)(envoy, IDM_TEXT("snapshot_loaded"), NULL, 0,
								    &self->loaded_counter) &&
	       !CALLBACK(bootstrap_extension_config_define_counter)(envoy, IDM_TEXT("snapshot_rejected"), NULL, 0,
								    &self->rejected_counter) &&
	       !CALLBACK(bootstrap_extension_config_define_counter)(envoy, IDM_TEXT("flows_written"), NULL, 0,
								    &self->flows_written_counter) &&
	       !CALLBACK(bootstrap_extension_config_define_counter)(envoy, IDM_TEXT("flows_lost"), NULL, 0,
								    &self->flows_lost_counter);
}

static bool start(struct bootstrap *self, struct idm_error *why)
{
	if (!define(self)) {
		snprintf(why->message, sizeof(why->message), "Envoy gave no stats");
		return false;
	}
	if (CALLBACK(is_validation_mode)())
		return true;
	if (!mesh_create()) {
		snprintf(why->message, sizeof(why->message), "only one bootstrap extension of idmesh may be configured");
		return false;
	}
	self->timer = CALLBACK(bootstrap_extension_timer_new)(self->envoy);
	start_flows(self);
	watch(self);
	look(self);
	CALLBACK(bootstrap_extension_timer_enable)(self->timer, POLL_MS);
	return true;
}

// --- hooks ---

IDM_HOOK const char *ON(program_init)(void)
{
	return CALLBACK(http_get_downstream_direct_remote_address) ? ENVOY_ABI_NEWEST : ENVOY_ABI_OLDER;
}

IDM_HOOK void *ON(bootstrap_extension_config_new)(struct envoy_bootstrap_config *envoy, struct idm_bytes name,
						  struct idm_bytes config)
{
	struct bootstrap *self = calloc(1, sizeof(*self));
	struct idm_error why = {{0}};

	(void)name;
	if (!self)
		return NULL;
	self->envoy = envoy;
	if (!configure(self, config, &why) || !start(self, &why)) {
		mesh_log(ENVOY_ERROR, "bootstrap extension refused: %s", why.message);
		destroy(self);
		return NULL;
	}
	CALLBACK(bootstrap_extension_config_signal_init_complete)(envoy);
	return self;
}

IDM_HOOK void ON(bootstrap_extension_config_destroy)(struct bootstrap *self)
{
	status_remove(&self->status);
	destroy(self);
}

IDM_HOOK void *ON(bootstrap_extension_new)(struct bootstrap *self, struct envoy_bootstrap *envoy)
{
	(void)envoy;
	return self;
}

IDM_HOOK void ON(bootstrap_extension_timer_fired)(struct envoy_bootstrap_config *envoy, struct bootstrap *self,
						  struct envoy_timer *timer)
{
	struct tally tally;
	bool changed;

	(void)envoy;
	watch(self);
	look(self);
	offer(self);
	tally_sum(&tally);
	changed = count_flows(self);
	changed = status_set_tally(&self->status, &tally) || changed;
	if (status_refresh(&self->status, mesh_oldest_revision()) || changed)
		show(self);
	mesh_end();
	CALLBACK(bootstrap_extension_timer_enable)(timer, POLL_MS);
}

IDM_HOOK void ON(bootstrap_extension_file_changed)(struct envoy_bootstrap_config *envoy, struct bootstrap *self,
						   struct idm_bytes path, uint32_t events)
{
	(void)envoy;
	(void)path;
	(void)events;
	look(self);
}

IDM_HOOK void ON(bootstrap_extension_shutdown)(struct envoy_bootstrap *envoy, struct bootstrap *self,
					       void (*done)(void *), void *context)
{
	(void)envoy;
	(void)self;
	done(context);
}
