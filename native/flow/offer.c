// SPDX-License-Identifier: Apache-2.0
// Hands rings over to the observer. The socket lies in the state directory, whose owner alone may make one there.

#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "idmesh/flow.h"

static void hang_up(int *connection)
{
	close(*connection);
	*connection = -1;
}

// The observer never sends: anything readable is its end.
static bool still_there(int connection)
{
	char byte;
	ssize_t size = recv(connection, &byte, 1, MSG_DONTWAIT);

	return size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

static int dial(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, error;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (!connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	error = -errno;
	close(fd);
	return error;
}

static int hand_over(int connection, const struct idm_ring *ring)
{
	struct idm_ring_hello hello;
	struct iovec part = { &hello, sizeof(hello) };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
				  .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	int fd = idm_ring_fd(ring);

	idm_ring_describe(ring, &hello);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	return sendmsg(connection, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(hello) ? 0 : -errno;
}

int idm_rings_offer(const char *path, struct idm_ring *const *rings, size_t count, int *connection)
{
	int error = 0;

	if (*connection >= 0 && still_there(*connection))
		return 0;
	if (*connection >= 0)
		hang_up(connection);
	*connection = dial(path);
	if (*connection < 0) {
		error = *connection;
		*connection = -1;
		// Nobody there, or not yet: no trouble.
		return error == -ENOENT || error == -ECONNREFUSED || error == -EAGAIN ? 0 : error;
	}
	for (size_t i = 0; i < count && !error; i++)
		error = hand_over(*connection, rings[i]);
	if (error)
		hang_up(connection);
	return error ? error : 1;
}
