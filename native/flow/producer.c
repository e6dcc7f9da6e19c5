// SPDX-License-Identifier: Apache-2.0
// The producer's side: what decides how much room there is stays in private memory, except for the consumer's tail,
// which is believed only as far as it can do no harm. Shared memory is written, and but for the tail never read.
//
// That private memory is wiped in a forked child: two producers of one ring would write over each other.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring.h"

struct idm_ring {
	struct ring_map map; // head is NULL in a child
	uint64_t head;
	uint64_t tail;    // the consumer's as it was last looked at: room that it showed stays
	uint64_t written; // these two are read by other threads
	uint64_t lost;
	uint32_t door;
	uint32_t worker;
	int fd;
};

static int sealed_memfd(uint32_t data_size)
{
	int fd = memfd_create("idmesh-flows", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int error;

	if (fd < 0)
		return -1;
	if (!fallocate(fd, 0, 0, IDM_RING_PAGE + (off_t)data_size) &&
	    !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

static void introduce(struct idm_ring_head *head, uint32_t data_size, uint32_t door, uint32_t worker)
{
	head->version = IDM_RING_VERSION;
	head->data_size = data_size;
	head->door = door;
	head->worker = worker;
	head->pid = (uint64_t)getpid();
	head->magic = IDM_RING_MAGIC;
}

static struct idm_ring *private_create(void)
{
	struct idm_ring *ring =
		mmap(NULL, sizeof(*ring), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (ring == MAP_FAILED)
		return NULL;
	// Where the kernel knows no wiping, not to fork is the caller's part.
	madvise(ring, sizeof(*ring), MADV_WIPEONFORK);
	return ring;
}

struct idm_ring *idm_ring_create(uint32_t data_size, uint32_t door, uint32_t worker)
{
	struct idm_ring *ring;
	int error;

	if (!ring_size_good(data_size)) {
		errno = EINVAL;
		return NULL;
	}
	ring = private_create();
	if (!ring)
		return NULL;
	ring->fd = sealed_memfd(data_size);
	error = ring->fd < 0 ? -errno : ring_map(ring->fd, data_size, &ring->map);
	if (error) {
		if (ring->fd >= 0)
			close(ring->fd);
		munmap(ring, sizeof(*ring));
		errno = -error;
		return NULL;
	}
	ring->door = door;
	ring->worker = worker;
	introduce(ring->map.head, data_size, door, worker);
	return ring;
}

void idm_ring_destroy(struct idm_ring *ring)
{
	if (!ring)
		return;
	if (ring->map.head) {
		ring_unmap(&ring->map);
		close(ring->fd);
	}
	munmap(ring, sizeof(*ring));
}

int idm_ring_fd(const struct idm_ring *ring)
{
	return ring->map.head ? ring->fd : -1;
}

void idm_ring_describe(const struct idm_ring *ring, struct idm_ring_hello *ret)
{
	*ret = (struct idm_ring_hello){ .magic = IDM_RING_MAGIC, .version = IDM_RING_VERSION,
					.data_size = ring->map.size, .door = ring->door, .worker = ring->worker,
					.pid = (uint64_t)getpid() };
}

uint64_t idm_ring_written(const struct idm_ring *ring)
{
	return __atomic_load_n(&ring->written, __ATOMIC_RELAXED);
}

uint64_t idm_ring_lost(const struct idm_ring *ring)
{
	return __atomic_load_n(&ring->lost, __ATOMIC_RELAXED);
}

// --- one record ---

struct pen {
	uint8_t *next;
	uint8_t *end;
	uint32_t flags;
};

// At most `limit` bytes of a text; what is missing is marked.
static uint16_t put_text(struct pen *pen, struct idm_bytes text, size_t limit)
{
	size_t room = (size_t)(pen->end - pen->next);
	size_t size = text.ptr ? text.size : 0;

	limit = limit < room ? limit : room;
	if (size > limit) {
		size = limit;
		pen->flags |= IDM_RECORD_CUT;
	}
	if (size)
		memcpy(pen->next, text.ptr, size);
	pen->next += size;
	return (uint16_t)size;
}

static const struct idm_bytes redacted = { IDM_REDACTED, sizeof(IDM_REDACTED) - 1 };

static bool put_header(struct pen *pen, const struct idm_header_line *line)
{
	struct idm_bytes value = line->value.ptr || !line->value.size ? line->value : redacted;
	uint16_t sizes[2];
	uint8_t *start = pen->next;

	if ((size_t)(pen->end - pen->next) < sizeof(sizes) + line->name.size ||
	    line->name.size > IDM_RECORD_TEXT_MAX)
		return false;
	pen->next += sizeof(sizes);
	sizes[0] = put_text(pen, line->name, IDM_RECORD_TEXT_MAX);
	sizes[1] = put_text(pen, value, IDM_RECORD_TEXT_MAX);
	memcpy(start, sizes, sizeof(sizes));
	return true;
}

static void put_headers(struct pen *pen, const struct idm_flow_facts *facts, struct idm_flow_record *record)
{
	const uint8_t *start = pen->next;

	record->header_count = 0;
	for (size_t i = 0; i < facts->header_count; i++) {
		if (put_header(pen, &facts->headers[i]))
			record->header_count++;
		else
			pen->flags |= IDM_RECORD_HEADERS_CUT;
	}
	record->headers_size = (uint16_t)(pen->next - start);
}

// Whole records at once: shared memory is never read back.
static uint32_t put_record(uint8_t *place, const struct idm_flow_facts *facts)
{
	struct idm_flow_record record = facts->fixed;
	struct pen pen = { place + sizeof(record), place + IDM_RECORD_MAX, record.flags };
	uint32_t size;

	record.version = IDM_FLOW_VERSION;
	record.reserved = 0;
	record.method_size = put_text(&pen, facts->method, IDM_RECORD_TEXT_MAX);
	record.host_size = put_text(&pen, facts->host, IDM_RECORD_TEXT_MAX);
	record.path_size = put_text(&pen, facts->path, IDM_RECORD_PATH_MAX);
	record.protocol_size = put_text(&pen, facts->protocol, IDM_RECORD_TEXT_MAX);
	record.sni_size = put_text(&pen, facts->sni, IDM_RECORD_TEXT_MAX);
	record.traceparent_size = put_text(&pen, facts->traceparent, IDM_RECORD_TEXT_MAX);
	put_headers(&pen, facts, &record);
	while ((pen.next - place) % 8)
		*pen.next++ = 0;
	size = (uint32_t)(pen.next - place);
	record.flags = pen.flags;
	record.size = size;
	memcpy(place, &record, sizeof(record));
	return size;
}

// One more, in private memory for whoever asks here, in shared memory for the consumer.
static void count_one(uint64_t *own, uint64_t *shown)
{
	uint64_t now = *own + 1;

	__atomic_store_n(own, now, __ATOMIC_RELAXED);
	__atomic_store_n(shown, now, __ATOMIC_RELAXED);
}

// The largest record must fit, so that nothing is measured before it is written. A tail ahead of us or too far behind
// is no consumer's: then there is no room.
static bool fits(const struct idm_ring *ring)
{
	uint64_t used = ring->head - ring->tail;

	return used <= ring->map.size && ring->map.size - used >= IDM_RECORD_MAX;
}

bool idm_ring_ready(struct idm_ring *ring)
{
	struct idm_ring_head *head = ring->map.head;

	if (!head)
		return false;
	if (fits(ring))
		return true;
	// Looked at only now, for the consumer's core has the line. With its release: it has read what it gives free
	// before it is written over.
	ring->tail = __atomic_load_n(&head->tail, __ATOMIC_ACQUIRE);
	if (fits(ring))
		return true;
	count_one(&ring->lost, &head->lost);
	return false;
}

int idm_ring_put(struct idm_ring *ring, const struct idm_flow_facts *facts)
{
	struct idm_ring_head *head = ring->map.head;

	if (!idm_ring_ready(ring))
		return -ENOSPC;
	ring->head += put_record(ring->map.data + (ring->head & (ring->map.size - 1)), facts);
	count_one(&ring->written, &head->written);
	__atomic_store_n(&head->head, ring->head, __ATOMIC_RELEASE);
	return 0;
}
