// SPDX-License-Identifier: Apache-2.0
/*
 * An open loop of HTTP/1.1 requests: each is due at its time, whether the ones before it were answered or not, and
 * its latency counts from when it was due. A request that finds no free connection waits for one, and that counts too.
 *
 * openloop PORT RATE SECONDS CONNECTIONS REQUESTS OUT
 *   REQUESTS: lines "METHOD PATH [TENANT]"; OUT: latencies in ns, u32 each, in the order of the answers.
 * Prints: sent, answers that were not 200, requests that were due and never sent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_MAX 8192
#define LINES_MAX 100000

struct connection {
	int fd;
	uint64_t due;
	size_t got;
	char answer[ANSWER_MAX];
};

static uint64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int dial(uint16_t port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
		fail("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static size_t read_requests(const char *file, char **requests)
{
	static char line[4096], method[16], path[3000], tenant[256];
	size_t count = 0;
	FILE *in = fopen(file, "r");

	if (!in)
		fail(file);
	while (count < LINES_MAX && fgets(line, sizeof(line), in)) {
		int found = sscanf(line, "%15s %2999s %255s", method, path, tenant);
		int made;

		if (found < 2)
			continue;
		made = found > 2 ? asprintf(&requests[count], "%s %s HTTP/1.1\r\nHost: server\r\nX-Tenant: %s\r\n\r\n",
					    method, path, tenant)
				 : asprintf(&requests[count], "%s %s HTTP/1.1\r\nHost: server\r\n\r\n", method, path);
		if (made < 0)
			fail("memory");
		count++;
	}
	fclose(in);
	return count;
}

/* Length of the whole answer, or 0 while the end of its headers has not come. */
static size_t answer_size(struct connection *c)
{
	char *end, *length;

	c->answer[c->got] = 0;
	end = strstr(c->answer, "\r\n\r\n");
	if (!end)
		return 0;
	length = strcasestr(c->answer, "\r\ncontent-length:");
	return (size_t)(end + 4 - c->answer) + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
}

/* Reads what came. 1: the answer is whole; 0: not yet. */
static int receive(struct connection *c)
{
	for (;;) {
		ssize_t n = recv(c->fd, c->answer + c->got, ANSWER_MAX - 1 - c->got, 0);
		size_t size;

		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0)
			fail("a connection was closed");
		c->got += n;
		size = answer_size(c);
		if (size && c->got >= size)
			return 1;
		if (c->got >= ANSWER_MAX - 1)
			fail("an answer is too long");
	}
}

static void transmit(struct connection *c, const char *request, uint64_t due)
{
	size_t size = strlen(request);

	c->due = due;
	c->got = 0;
	if (send(c->fd, request, size, MSG_NOSIGNAL) != (ssize_t)size)
		fail("send");
}

int main(int argc, char **argv)
{
	static char *requests[LINES_MAX];
	uint64_t start, end, next, step_ps, sent = 0, answered = 0, bad = 0, due_count;
	struct epoll_event events[256];
	struct connection *all, **idle;
	size_t lines, connections, free_count;
	uint32_t *latencies;
	int poll;
	FILE *out;

	if (argc != 7)
		return 2;
	connections = strtoul(argv[4], NULL, 10);
	lines = read_requests(argv[5], requests);
	due_count = (uint64_t)(atof(argv[2]) * atof(argv[3]));
	step_ps = (uint64_t)(1e12 / atof(argv[2]));
	all = calloc(connections, sizeof(*all));
	idle = calloc(connections, sizeof(*idle));
	latencies = calloc(due_count + 1, sizeof(*latencies));
	out = fopen(argv[6], "wb");
	poll = epoll_create1(EPOLL_CLOEXEC);
	if (!all || !idle || !latencies || !out || !lines || !connections)
		return 2;
	for (free_count = 0; free_count < connections; free_count++) {
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = &all[free_count] };

		all[free_count].fd = dial((uint16_t)atoi(argv[1]));
		epoll_ctl(poll, EPOLL_CTL_ADD, all[free_count].fd, &event);
		idle[free_count] = &all[free_count];
	}
	prctl(PR_SET_TIMERSLACK, 1);
	start = now_ns();
	end = start + (uint64_t)(atof(argv[3]) * 1e9) + 1000000000ull; /* the last answers get a second more */
	while (answered < due_count && now_ns() < end) {
		struct timespec wait = { 0, 0 };
		uint64_t now = now_ns();
		int n;

		for (; sent < due_count && free_count; sent++) {
			next = start + sent * step_ps / 1000;
			if (next > now)
				break;
			transmit(idle[--free_count], requests[sent % lines], next);
		}
		next = start + sent * step_ps / 1000;
		if (sent == due_count || !free_count)
			wait.tv_nsec = 50000000;
		else if (next > now)
			wait.tv_nsec = (long)(next - now);
		n = epoll_pwait2(poll, events, 256, &wait, NULL);
		if (n < 0 && errno != EINTR)
			fail("epoll");
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;

			if (!receive(c))
				continue;
			bad += memcmp(c->answer + 9, "200", 3) != 0;
			now = now_ns() - c->due;
			latencies[answered++] = now > UINT32_MAX ? UINT32_MAX : (uint32_t)now;
			idle[free_count++] = c;
		}
	}
	fwrite(latencies, sizeof(*latencies), answered, out);
	fclose(out);
	printf("%llu %llu %llu\n", (unsigned long long)answered, (unsigned long long)bad,
	       (unsigned long long)(due_count - answered));
	return 0;
}
