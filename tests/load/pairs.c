// SPDX-License-Identifier: Apache-2.0
/*
 * Two ends of TCP for measuring what lies between them: connections, round trips or a stream, as fast as they go.
 *
 * pairs serve ADDRESS PORT
 *   Sends back what comes at PORT, and swallows what comes at PORT + 1, until it is ended.
 * pairs connections|requests|stream ADDRESS PORT SECONDS AT_ONCE
 *   connections: connect, one byte there and back, close. requests: one byte there and back. stream: 256 KiB writes.
 *   Prints: units (connections, round trips, bytes), nanoseconds, nanoseconds of CPU.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 64
#define BLOCK (256 * 1024)
#define SINK 1u /* in an event's data, beside the descriptor: nothing is sent back */
#define LISTENS 2u

static char block[BLOCK];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

static struct sockaddr_in place(const char *address, int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };

	if (inet_pton(AF_INET, address, &at.sin_addr) != 1)
		fail(address);
	return at;
}

static void watch(int poll, int fd, uint32_t flags)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)flags << 32 | (uint32_t)fd };

	if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
		fail("epoll_ctl");
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* ---- the server ---- */

static int listen_at(const char *address, int port)
{
	struct sockaddr_in at = place(address, port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 1024))
		fail("listen");
	return fd;
}

/* One read: what a client sends at once comes at once. */
static void answer(int fd, uint32_t flags)
{
	ssize_t got = recv(fd, block, sizeof(block), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0 || (!(flags & SINK) && send(fd, block, (size_t)got, MSG_NOSIGNAL) != got))
		close(fd);
}

static void take(int poll, int listener, uint32_t flags)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, 0)) >= 0) {
		no_delay(fd);
		watch(poll, fd, flags & SINK);
		answer(fd, flags);
	}
}

static int serve(const char *address, int port)
{
	struct epoll_event events[EVENTS];
	int poll = epoll_create1(0);

	watch(poll, listen_at(address, port), LISTENS);
	watch(poll, listen_at(address, port + 1), LISTENS | SINK);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(poll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			uint32_t flags = events[i].data.u64 >> 32;
			int fd = (int)(uint32_t)events[i].data.u64;

			if (flags & LISTENS)
				take(poll, fd, flags);
			else
				answer(fd, flags);
		}
	}
}

/* ---- the client ---- */

static int dial(const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		fail("connect");
	no_delay(fd);
	return fd;
}

static void say(int fd)
{
	if (send(fd, block, 1, MSG_NOSIGNAL) != 1)
		fail("send");
}

static int begin(int poll, const struct sockaddr_in *to)
{
	int fd = dial(to);

	say(fd);
	watch(poll, fd, 0);
	return fd;
}

/* Conversations, so many at once; each round trip ends one (anew), or begins the next one over the same connection. */
static uint64_t converse(const struct sockaddr_in *to, uint64_t end, int at_once, int anew)
{
	struct epoll_event events[EVENTS];
	int poll = epoll_create1(0);
	uint64_t count = 0;

	while (at_once--)
		begin(poll, to);
	while (clock_ns(CLOCK_MONOTONIC) < end) {
		int n = epoll_wait(poll, events, EVENTS, 1000);

		if (n == 0) {
			errno = ETIMEDOUT;
			fail("no answer");
		}
		for (int i = 0; i < n; i++) {
			int fd = (int)(uint32_t)events[i].data.u64;

			if (recv(fd, block, 1, 0) != 1)
				fail("recv");
			count++;
			if (anew) {
				close(fd);
				begin(poll, to);
			} else {
				say(fd);
			}
		}
	}
	return count;
}

static uint64_t stream(const struct sockaddr_in *to, uint64_t end)
{
	int fd = dial(to);
	uint64_t count = 0;

	while (clock_ns(CLOCK_MONOTONIC) < end) {
		ssize_t sent = send(fd, block, sizeof(block), MSG_NOSIGNAL);

		if (sent < 0)
			fail("send");
		count += (uint64_t)sent;
	}
	return count;
}

int main(int argc, char **argv)
{
	uint64_t start, cpu, count;
	struct sockaddr_in to;
	int at_once;

	if (argc == 4 && !strcmp(argv[1], "serve"))
		return serve(argv[2], atoi(argv[3]));
	if (argc != 6)
		return 2;
	at_once = atoi(argv[5]);
	start = clock_ns(CLOCK_MONOTONIC);
	cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	if (!strcmp(argv[1], "stream")) {
		to = place(argv[2], atoi(argv[3]) + 1);
		count = stream(&to, start + (uint64_t)(atof(argv[4]) * 1e9));
	} else {
		to = place(argv[2], atoi(argv[3]));
		count = converse(&to, start + (uint64_t)(atof(argv[4]) * 1e9), at_once, argv[1][0] == 'c');
	}
	printf("%llu %llu %llu\n", (unsigned long long)count,
	       (unsigned long long)(clock_ns(CLOCK_MONOTONIC) - start),
	       (unsigned long long)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu));
	return 0;
}
