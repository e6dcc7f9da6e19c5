// SPDX-License-Identifier: Apache-2.0
// A live mapping of a file that someone may truncate would crash every worker: so it is read, never mapped.

#include "snapshot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mesh.h"

// Far above any real snapshot; keeps a wrong path from eating the memory.
#define SNAPSHOT_MAX (INT64_C(2) << 30)

static int fail(struct idm_error *err, const struct snapshot_file *file, int code, const char *what)
{
	snprintf(err->message, sizeof(err->message), "%s: %s", file->path, what ? what : strerror(code));
	return -code;
}

static bool same(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

bool snapshot_file_changed(const struct snapshot_file *file)
{
	struct stat now;

	if (stat(file->path, &now))
		return false;
	return !file->tried || !same(&now, &file->seen);
}

static int read_all(int fd, char *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t got = read(fd, data + done, size - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? errno : EIO;
		done += (size_t)got;
	}
	return 0;
}

// Who may write the file decides what this host lets through.
static const char *check_file(const struct stat *seen)
{
	if (!S_ISREG(seen->st_mode))
		return "not a regular file";
	if (seen->st_mode & (S_IWGRP | S_IWOTH))
		return "group or others may write it";
	if (seen->st_uid && seen->st_uid != geteuid())
		return "belongs to another user";
	if (seen->st_size > SNAPSHOT_MAX)
		return "too large";
	return NULL;
}

static int read_file(struct snapshot_file *file, char **data, size_t *size, struct idm_error *err)
{
	int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	const char *bad;
	int code = 0;

	if (fd < 0)
		return fail(err, file, errno, NULL);
	if (fstat(fd, &file->seen))
		code = errno;
	file->tried = !code;
	bad = code ? NULL : check_file(&file->seen);
	if (bad)
		code = EINVAL;
	if (!code) {
		*size = (size_t)file->seen.st_size;
		*data = malloc(*size + 1);
		code = *data ? read_all(fd, *data, *size) : ENOMEM;
	}
	close(fd);
	if (code && !bad)
		file->tried = false; // the file may be good all the same: it is read again
	if (code)
		free(*data);
	return code ? fail(err, file, code, bad) : 0;
}

int snapshot_file_load(struct snapshot_file *file, struct idm_error *err)
{
	struct idm_snapshot *loaded, *previous;
	struct idm_error why = {{0}};
	size_t size = 0;
	char *data = NULL;
	int ret;

	ret = read_file(file, &data, &size, err);
	if (ret)
		return ret;
	previous = mesh_current();
	ret = idm_snapshot_load(data, size, previous, &loaded, &why);
	if (previous)
		idm_snapshot_unref(previous);
	free(data);
	if (ret == -ENOMEM)
		file->tried = false;
	if (ret)
		return fail(err, file, -ret, why.message[0] ? why.message : NULL);
	mesh_publish(loaded);
	return 0;
}
