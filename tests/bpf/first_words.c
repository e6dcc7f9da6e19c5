/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A workload whose first instruction speaks: TCP and UDP to every address given, again and again until stdin ends.
 *
 * first_words TALLY CGROUP_PROCS|- NETNS|- PORT ADDRESS...
 *
 * As a runtime does it, it joins its cgroup and its namespace before it is the workload. TALLY is a file of two 64-bit
 * numbers that grow as it goes: what it tried to send, and what was refused to its face.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 16, FAST_ROUNDS = 20, PAUSE_MS = 3 };

struct tally {
	uint64_t tried;
	uint64_t refused;
};

struct target {
	struct sockaddr_storage place;
	socklen_t length;
	int line;
};

static struct tally *opened(const char *path)
{
	int file = open(path, O_RDWR | O_CLOEXEC);
	void *found = MAP_FAILED;

	if (file >= 0)
		found = mmap(NULL, sizeof(struct tally), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	return found == MAP_FAILED ? NULL : found;
}

static int join_cgroup(const char *procs)
{
	int file = open(procs, O_WRONLY | O_CLOEXEC);
	int failed = file < 0 || write(file, "0", 1) != 1;

	if (file >= 0)
		close(file);
	return failed;
}

static int join_namespace(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	int failed = file < 0 || setns(file, CLONE_NEWNET);

	if (file >= 0)
		close(file);
	return failed;
}

static int parse(struct target *target, const char *address, const char *port)
{
	struct sockaddr_in *four = (struct sockaddr_in *)&target->place;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&target->place;

	target->line = -1;
	four->sin_port = htons((uint16_t)atoi(port)); // where sin6_port is, too
	if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
		target->place.ss_family = AF_INET;
		target->length = sizeof(*four);
		return 0;
	}
	target->place.ss_family = AF_INET6;
	target->length = sizeof(*six);
	return inet_pton(AF_INET6, address, &six->sin6_addr) != 1;
}

static void count(struct tally *tally, int failed)
{
	__atomic_fetch_add(&tally->tried, 1, __ATOMIC_RELAXED);
	if (failed && errno != EINPROGRESS)
		__atomic_fetch_add(&tally->refused, 1, __ATOMIC_RELAXED);
}

// A SYN and a datagram; the connection before is forgotten, so that each is a flow of its own.
static void speak(struct tally *tally, struct target *target)
{
	const struct sockaddr *place = (const struct sockaddr *)&target->place;
	int line = socket(place->sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	count(tally, line < 0 || sendto(line, "first", 5, 0, place, target->length) < 0);
	if (line >= 0)
		close(line);
	if (target->line >= 0)
		close(target->line);
	target->line = socket(place->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	count(tally, target->line < 0 || connect(target->line, place, target->length));
}

int main(int words, char **word)
{
	struct target targets[MOST] = {0};
	struct pollfd end = {.fd = 0, .events = POLLIN};
	struct tally *tally;
	int number = words - 5;

	if (number < 1 || number > MOST || !(tally = opened(word[1])))
		return 2;
	for (int each = 0; each < number; each++)
		if (parse(&targets[each], word[5 + each], word[4]))
			return 2;
	if ((strcmp(word[2], "-") && join_cgroup(word[2])) || (strcmp(word[3], "-") && join_namespace(word[3])))
		return 3;
	for (int round = 0; !poll(&end, 1, round < FAST_ROUNDS ? 0 : PAUSE_MS); round++)
		for (int each = 0; each < number; each++)
			speak(tally, &targets[each]);
	return 0;
}
