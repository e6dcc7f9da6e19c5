/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SPIFFE ids, read strictly: one spelling per id. Nothing is decoded or brought into another form, for what needs
 * either is no SPIFFE id (SPIFFE-ID, section 2: no query, fragment, port, user or percent escape).
 */
#include <errno.h>

#include "idmesh/peer.h"
#include "internal.h"

#define SCHEME "spiffe://"
#define SEGMENTS_MAX 4
// Numbers of workloads: below are the reserved identities, which no certificate may claim (Cilium gives them none);
// above are numbers that mean something on one node only (addresses and nodes), never a workload with a key.
#define IDENTITY_MIN 256u
#define IDENTITY_MAX 0xffffffu

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool in_trust_domain(char c)
{
	return (c >= 'a' && c <= 'z') || is_digit(c) || c == '.' || c == '-' || c == '_';
}

static bool in_path(char c)
{
	return in_trust_domain(c) || (c >= 'A' && c <= 'Z');
}

static bool equals(struct idm_bytes bytes, const char *text)
{
	return idm_bytes_equal(bytes, (struct idm_bytes){text, strlen(text)});
}

static bool valid_trust_domain(struct idm_bytes name)
{
	if (!name.size || name.size > IDM_TRUST_DOMAIN_MAX)
		return false;
	for (size_t i = 0; i < name.size; i++)
		if (!in_trust_domain(name.ptr[i]))
			return false;
	return true;
}

int idm_peer_rules_valid(const struct idm_peer_rules *rules)
{
	bool certificates = rules->trust_domain.size;

	if (certificates && !valid_trust_domain(rules->trust_domain))
		return 0;
	if (!certificates && (rules->address_ignored || rules->required & IDM_EVIDENCE_CERTIFICATE))
		return 0;
	return !(rules->address_ignored && rules->required & IDM_EVIDENCE_ADDRESS);
}

// Cut the next segment off a path that starts with a slash.
static bool next_segment(struct idm_bytes *path, struct idm_bytes *ret)
{
	size_t end = 1;

	if (!path->size || path->ptr[0] != '/')
		return false;
	for (; end < path->size && path->ptr[end] != '/'; end++)
		if (!in_path(path->ptr[end]))
			return false;
	*ret = (struct idm_bytes){path->ptr + 1, end - 1};
	*path = (struct idm_bytes){path->ptr + end, path->size - end};
	return ret->size && !equals(*ret, ".") && !equals(*ret, "..");
}

static bool read_number(struct idm_bytes text, uint32_t *ret)
{
	uint32_t number = 0;

	if (!text.size || text.size > 8 || text.ptr[0] == '0')
		return false;
	for (size_t i = 0; i < text.size; i++) {
		if (!is_digit(text.ptr[i]))
			return false;
		number = number * 10 + (uint32_t)(text.ptr[i] - '0');
	}
	*ret = number;
	return number >= IDENTITY_MIN && number <= IDENTITY_MAX;
}

static bool read_account(const struct idm_bytes *segments, struct idm_spiffe *ret)
{
	ret->kind = IDM_SPIFFE_ACCOUNT;
	ret->name_space = segments[1];
	ret->account = segments[3];
	return equals(segments[0], "ns") && equals(segments[2], "sa") && segments[1].size <= IDM_NAMESPACE_MAX &&
	       segments[3].size <= IDM_ACCOUNT_MAX;
}

int idm_spiffe_parse(struct idm_bytes text, struct idm_bytes trust_domain, struct idm_spiffe *ret)
{
	size_t head = sizeof(SCHEME) - 1 + trust_domain.size;
	struct idm_bytes segments[SEGMENTS_MAX], path;
	size_t count = 0;

	memset(ret, 0, sizeof(*ret));
	if (!valid_trust_domain(trust_domain) || text.size <= head || text.size > IDM_SPIFFE_ID_MAX ||
	    memcmp(text.ptr, SCHEME, sizeof(SCHEME) - 1) ||
	    memcmp(text.ptr + sizeof(SCHEME) - 1, trust_domain.ptr, trust_domain.size))
		return -EINVAL;
	path = (struct idm_bytes){text.ptr + head, text.size - head};
	while (path.size) {
		if (count == SEGMENTS_MAX || !next_segment(&path, &segments[count]))
			return -EINVAL;
		count++;
	}
	if (count == 4)
		return read_account(segments, ret) ? 0 : -EINVAL;
	ret->kind = IDM_SPIFFE_IDENTITY;
	return count == 2 && equals(segments[0], "identity") && read_number(segments[1], &ret->identity) ? 0 : -EINVAL;
}
