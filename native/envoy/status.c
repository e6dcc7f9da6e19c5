// SPDX-License-Identifier: Apache-2.0
// The reader's status file, replaced whole so that nobody reads half of it.

#include "status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"

static char *path_of(const char *directory, const char *suffix)
{
	size_t size = strlen(directory) + strlen(suffix) + 32;
	char *path = malloc(size);

	if (path)
		snprintf(path, size, "%s/%ld.json%s", directory, (long)getpid(), suffix);
	return path;
}

bool status_init(struct status *ret, const char *state)
{
	size_t size = strlen(state) + sizeof("/readers");

	ret->directory = malloc(size);
	if (!ret->directory)
		return false;
	snprintf(ret->directory, size, "%s/readers", state);
	ret->path = path_of(ret->directory, "");
	ret->part = path_of(ret->directory, ".part");
	ret->workers = CALLBACK(get_concurrency)();
	return ret->path && ret->part;
}

void status_deinit(struct status *status)
{
	free(status->directory);
	free(status->path);
	free(status->part);
}

void status_set_revision(struct status *status, uint64_t revision, const uint8_t digest[32])
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	status->ready = true;
	status->revision = revision;
	status->in_force_since = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
	for (int i = 0; i < 32; i++)
		snprintf(status->digest + 2 * i, 3, "%02x", digest[i]);
}

bool status_refresh(struct status *status, uint64_t oldest)
{
	bool changed = status->oldest != oldest;

	status->oldest = oldest;
	return changed;
}

bool status_set_flows(struct status *status, uint64_t written, uint64_t lost)
{
	bool changed = !status->flows || status->flows_written != written || status->flows_lost != lost;

	status->flows = true;
	status->flows_written = written;
	status->flows_lost = lost;
	return changed;
}

bool status_set_tally(struct status *status, const struct tally *tally)
{
	bool changed = memcmp(&status->tally, tally, sizeof(*tally));

	status->tally = *tally;
	return changed;
}

static void write_counts(FILE *out, const struct tally *tally)
{
	fprintf(out, "{\"allowed\": %llu, \"audit\": %llu, \"denied\": %llu, \"error\": %llu}",
		(unsigned long long)tally->allowed, (unsigned long long)tally->audit,
		(unsigned long long)tally->denied, (unsigned long long)tally->error);
}

// Errors quote file names, so anything may stand in them.
static void write_text(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}

static void write_flows(FILE *out, const struct status *status)
{
	if (status->flows)
		fprintf(out, "{\"written\": %llu, \"lost\": %llu}", (unsigned long long)status->flows_written,
			(unsigned long long)status->flows_lost);
	else
		fputs("null", out);
}

static void write_fields(FILE *out, const struct status *status)
{
	fprintf(out, "{\"door\": \"module\", \"pid\": %ld, \"ready\": %s, \"revision\": %llu, \"digest\": ", (long)getpid(),
		status->ready ? "true" : "false", (unsigned long long)status->revision);
	if (status->ready)
		write_text(out, status->digest);
	else
		fputs("null", out);
	fputs(", \"in_force_since\": ", out);
	if (status->ready)
		fprintf(out, "%.6f", status->in_force_since);
	else
		fputs("null", out);
	fputs(", \"flows\": ", out);
	write_flows(out, status);
	fputs(", \"counts\": ", out);
	write_counts(out, &status->tally);
	fprintf(out, ", \"oldest_decision\": %llu, \"workers\": %u, \"rejected\": %llu, \"error\": ",
		(unsigned long long)status->oldest, status->workers, (unsigned long long)status->rejected);
	if (status->error[0])
		write_text(out, status->error);
	else
		fputs("null", out);
	fputs("}\n", out);
}

static bool replace(struct status *status)
{
	FILE *out;
	bool good;

	if (mkdir(status->directory, 0700) && errno != EEXIST)
		return false;
	out = fopen(status->part, "we");
	if (!out)
		return false;
	write_fields(out, status);
	good = !ferror(out);
	good = !fclose(out) && good;
	return good && !rename(status->part, status->path);
}

bool status_write(struct status *status)
{
	bool before = status->failed;

	status->failed = !replace(status);
	return !status->failed || before;
}

void status_remove(struct status *status)
{
	if (status->path)
		unlink(status->path);
}
