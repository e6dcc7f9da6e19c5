/* SPDX-License-Identifier: Apache-2.0 */
/* The peer, from all evidence that there is. Every doubt is a refusal: the flow is then denied. */
#include "idmesh/peer.h"
#include "internal.h"
#include "resolve.h"

#define NAMESPACE_LABEL "k8s:io.kubernetes.pod.namespace="
#define ACCOUNT_LABEL "k8s:io.cilium.k8s.policy.serviceaccount="
#define SECOND_MS 1000u

_Static_assert(IDM_NAMESPACE_MAX + IDM_ACCOUNT_MAX <= IDM_PEER_NAMES, "the longest names fit");

struct located {
	uint32_t identity;
	uint32_t endpoint;
};

// ---- certificates ----

struct certificate {
	bool present;
	uint64_t end_ms;
	struct idm_bytes sans;
};

static bool is_absent(struct idm_bytes text)
{
	return !text.size || (text.size == 1 && text.ptr[0] == '-');
}

// Seconds since 1970. A certificate that ends before, or after all time, says what nobody can rely on.
static bool read_end(struct idm_bytes text, uint64_t *ret)
{
	uint64_t seconds = 0;

	if (!text.size || text.size > 12)
		return false;
	for (size_t i = 0; i < text.size; i++) {
		if (text.ptr[i] < '0' || text.ptr[i] > '9')
			return false;
		seconds = seconds * 10 + (uint64_t)(text.ptr[i] - '0');
	}
	*ret = seconds * SECOND_MS;
	return true;
}

// Whether a certificate is there is told by its end, which every certificate has; not by a SAN, which it may lack.
static bool read_certificate(struct idm_bytes text, struct certificate *ret)
{
	const char *semicolon = text.ptr ? memchr(text.ptr, ';', text.size) : NULL;
	struct idm_bytes end;

	if (!semicolon)
		return false;
	end = (struct idm_bytes){text.ptr, (size_t)(semicolon - text.ptr)};
	ret->sans = (struct idm_bytes){semicolon + 1, text.size - end.size - 1};
	ret->present = !is_absent(end);
	return ret->present ? read_end(end, &ret->end_ms) : is_absent(ret->sans);
}

// ---- labels ----

static bool label_is(struct idm_bytes label, const char *key, size_t key_size, struct idm_bytes value)
{
	return label.size == key_size + value.size && !memcmp(label.ptr, key, key_size) &&
	       !memcmp(label.ptr + key_size, value.ptr, value.size);
}
#define LABEL_IS(label, key, value) label_is(label, key, sizeof(key) - 1, value)

static bool has_account(const struct idm_identities *table, uint32_t index, const struct idm_spiffe *id)
{
	const struct idm_identity *identity = &table->identities[index];
	bool name_space = false, account = false;

	for (uint32_t i = 0; i < identity->label_count; i++) {
		struct idm_bytes label = idm_text(table->strings, table->labels[identity->first_label + i]);

		name_space |= LABEL_IS(label, NAMESPACE_LABEL, id->name_space);
		account |= LABEL_IS(label, ACCOUNT_LABEL, id->account);
	}
	return name_space && account;
}

static uint32_t scan_accounts(const struct idm_identities *table, const struct idm_spiffe *id)
{
	uint32_t found = IDM_NONE;

	for (uint32_t i = 0; i < table->identity_count; i++) {
		if (!has_account(table, i, id))
			continue;
		if (found != IDM_NONE)
			return IDM_NONE;
		found = table->identities[i].id;
	}
	return found;
}

// The one identity with these labels, or IDM_NONE.
static uint32_t identity_of_account(const struct idm_snapshot *snapshot, const struct idm_spiffe *id,
				    struct idm_peer_cache *cache)
{
	const struct idm_table *table = snapshot->tables[IDM_TABLE_IDENTITIES - 1];
	uint64_t hash = idm_hash64(idm_hash64(0, id->name_space.ptr, id->name_space.size), id->account.ptr,
				   id->account.size);
	__typeof__(cache->slots[0]) *slot = &cache->slots[hash % IDM_PEER_CACHE];
	struct idm_bytes name_space = {slot->names, slot->namespace_size};
	struct idm_bytes account = {slot->names + slot->namespace_size, slot->account_size};

	if (idm_bytes_equal(name_space, id->name_space) && idm_bytes_equal(account, id->account) &&
	    !memcmp(slot->digest, table->digest, sizeof(slot->digest)))
		return slot->identity;
	memcpy(slot->digest, table->digest, sizeof(slot->digest));
	memcpy(slot->names, id->name_space.ptr, id->name_space.size);
	memcpy(slot->names + id->name_space.size, id->account.ptr, id->account.size);
	slot->namespace_size = (uint16_t)id->name_space.size;
	slot->account_size = (uint16_t)id->account.size;
	slot->identity = scan_accounts(&table->identities, id);
	return slot->identity;
}

// ---- agreement ----

// An address that nobody knows is "world", which no certificate may claim to be: so it agrees with none.
static bool agrees(const struct idm_snapshot *snapshot, const struct idm_spiffe *id, uint32_t identity)
{
	const struct idm_identities *table = idm_identities(snapshot);
	uint32_t index = idm_identity_find(table, identity);

	if (index == IDM_NONE)
		return false;
	return id->kind == IDM_SPIFFE_IDENTITY ? id->identity == identity : has_account(table, index, id);
}

// Whom the certificate names where nothing else does.
static uint32_t named(const struct idm_snapshot *snapshot, const struct idm_spiffe *id, struct idm_peer_cache *cache)
{
	if (id->kind == IDM_SPIFFE_ACCOUNT)
		return identity_of_account(snapshot, id, cache);
	return idm_identity_find(idm_identities(snapshot), id->identity) == IDM_NONE ? IDM_NONE : id->identity;
}

static uint32_t add_address(const struct idm_snapshot *snapshot, const struct idm_peer_rules *rules,
			    const struct idm_peer_facts *facts, struct located *address, struct idm_peer *ret)
{
	if (!facts->address ||
	    idm_resolve(snapshot, (int)facts->family, facts->address, &address->identity, &address->endpoint))
		return IDM_PEER_NO_ADDRESS;
	if (rules->address_ignored)
		return IDM_PEER_FINE;
	ret->identity = address->identity;
	ret->evidence = IDM_EVIDENCE_ADDRESS;
	return IDM_PEER_FINE;
}

// What the datapath told; it never stands without saying that it rests on that, and never speaks for a certificate.
static uint32_t add_told(const struct idm_snapshot *snapshot, const struct idm_peer_facts *facts, struct idm_peer *ret)
{
	if (!facts->told)
		return IDM_PEER_FINE;
	if (!(facts->told_evidence & IDM_EVIDENCE_DATAPATH) || (ret->evidence && facts->told_identity != ret->identity))
		return IDM_PEER_DISAGREE;
	if (facts->told_domain && facts->told_domain != idm_snapshot_domain(snapshot))
		return IDM_PEER_DISAGREE;
	ret->identity = facts->told_identity;
	ret->evidence |= IDM_EVIDENCE_DATAPATH;
	ret->domain = facts->told_domain;
	return IDM_PEER_FINE;
}

static uint32_t add_certificate(const struct idm_snapshot *snapshot, const struct idm_peer_rules *rules,
				const struct idm_peer_facts *facts, struct idm_peer_cache *cache, struct idm_peer *ret)
{
	struct certificate certificate = {0};
	struct idm_spiffe id;

	if (!rules->trust_domain.size)
		return IDM_PEER_FINE;
	// The configuration promised the report: without it nobody knows whether there was a certificate.
	if (!read_certificate(facts->certificate, &certificate))
		return IDM_PEER_CERTIFICATE;
	if (!certificate.present)
		return IDM_PEER_FINE;
	if (idm_spiffe_parse(certificate.sans, rules->trust_domain, &id))
		return IDM_PEER_CERTIFICATE;
	if (facts->now_ms >= certificate.end_ms)
		return IDM_PEER_ENDED;
	if (!ret->evidence)
		ret->identity = named(snapshot, &id, cache);
	if (!agrees(snapshot, &id, ret->identity))
		return ret->evidence ? IDM_PEER_DISAGREE : IDM_PEER_CERTIFICATE;
	ret->evidence |= IDM_EVIDENCE_CERTIFICATE;
	ret->expiry_ms = certificate.end_ms;
	return IDM_PEER_FINE;
}

static uint32_t weigh(const struct idm_snapshot *snapshot, const struct idm_peer_rules *rules,
		      const struct idm_peer_facts *facts, struct idm_peer_cache *cache, struct located *address,
		      struct idm_peer *ret)
{
	uint32_t answer = add_address(snapshot, rules, facts, address, ret);

	if (!answer)
		answer = add_told(snapshot, facts, ret);
	if (!answer)
		answer = add_certificate(snapshot, rules, facts, cache, ret);
	if (!answer && (!ret->evidence || (ret->evidence & rules->required) != rules->required))
		answer = IDM_PEER_MISSING;
	return answer;
}

uint32_t idm_peer_judge(const struct idm_snapshot *snapshot, const struct idm_peer_rules *rules,
			const struct idm_peer_facts *facts, struct idm_peer_cache *cache, struct idm_peer *ret,
			uint32_t *endpoint)
{
	struct located address = {0, IDM_NONE};
	uint32_t answer;

	*ret = (struct idm_peer){0};
	answer = weigh(snapshot, rules, facts, cache, &address, ret);
	if (answer) {
		ret->evidence = 0;
		ret->expiry_ms = 0;
	}
	// Behind somebody else's address the peer's own endpoint is not to be found.
	*endpoint = answer || address.identity == ret->identity ? address.endpoint : IDM_NONE;
	return answer;
}
