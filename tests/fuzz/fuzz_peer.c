/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as what Envoy reports of a certificate, against a sound snapshot (folder IDMESH_SEEDS). What is read as a
 * SPIFFE id must be the one spelling of what was read, and nobody is anybody by a certificate that was not accepted.
 * Input: a byte of choices, an identity (four bytes), the report.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "idmesh/peer.h"

#define DOMAIN "td.test"

static struct idm_snapshot *snapshot;
static struct idm_peer_cache cache;

static void check(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "%s\n", what);
	abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static char data[1 << 20], path[4096];
	const char *folder = getenv("IDMESH_SEEDS");
	struct idm_error error;
	FILE *file;
	size_t size;

	(void)argc;
	(void)argv;
	check(!!folder, "IDMESH_SEEDS must name the folder of seed snapshots");
	snprintf(path, sizeof(path), "%s/http.snapshot", folder);
	file = fopen(path, "rb");
	check(!!file, path);
	size = fread(data, 1, sizeof(data), file);
	fclose(file);
	check(!idm_snapshot_load(data, size, NULL, &snapshot, &error), "the seed does not load");
	return 0;
}

static void one_spelling(struct idm_bytes text)
{
	const struct idm_bytes domain = {DOMAIN, sizeof(DOMAIN) - 1};
	char spelled[IDM_SPIFFE_ID_MAX + 64];
	struct idm_spiffe id;

	if (idm_spiffe_parse(text, domain, &id))
		return;
	if (id.kind == IDM_SPIFFE_IDENTITY)
		snprintf(spelled, sizeof(spelled), "spiffe://" DOMAIN "/identity/%u", id.identity);
	else
		snprintf(spelled, sizeof(spelled), "spiffe://" DOMAIN "/ns/%.*s/sa/%.*s", (int)id.name_space.size,
			 id.name_space.ptr, (int)id.account.size, id.account.ptr);
	check(strlen(spelled) == text.size && !memcmp(spelled, text.ptr, text.size), "two spellings of one id");
}

static void judge(uint8_t choices, uint32_t told, struct idm_bytes report)
{
	static const uint8_t addresses[4][16] = {{10, 0, 0, 1}, {10, 0, 0, 2}, {203, 0, 113, 9}, {0xfd}};
	const struct idm_peer_rules rules = {
		.required = choices & 4,
		.address_ignored = choices >> 3 & 1,
		.trust_domain = {DOMAIN, choices & 16 ? 0 : sizeof(DOMAIN) - 1},
	};
	const struct idm_peer_facts facts = {
		.family = (choices & 3) == 3 ? 6 : 4,
		.address = addresses[choices & 3],
		.told = choices >> 5 & 1,
		.told_identity = told,
		.told_evidence = choices >> 6,
		.certificate = report,
		.now_ms = 1000000,
	};
	struct idm_peer peer;
	uint32_t endpoint, answer = idm_peer_judge(snapshot, &rules, &facts, &cache, &peer, &endpoint);

	check(answer ? !peer.evidence : (peer.evidence & rules.required) == rules.required, "refused, yet evident");
	check(!(peer.evidence & IDM_EVIDENCE_CERTIFICATE) || (rules.trust_domain.size && peer.expiry_ms > facts.now_ms),
	      "a certificate counts that should not");
	check(answer || peer.evidence, "a peer without evidence");
	check(!rules.address_ignored || !(peer.evidence & IDM_EVIDENCE_ADDRESS), "an ignored address counts");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct idm_bytes report;
	const char *semicolon;
	uint32_t told;
	char *copy;

	if (size < 5)
		return 0;
	memcpy(&told, data + 1, 4);
	// In memory of its own size, so that reading past either end is seen.
	copy = malloc(size - 5 ? size - 5 : 1);
	memcpy(copy, data + 5, size - 5);
	report = (struct idm_bytes){copy, size - 5};
	judge(data[0], told, report);
	semicolon = memchr(copy, ';', report.size);
	if (semicolon)
		one_spelling((struct idm_bytes){semicolon + 1, report.size - (size_t)(semicolon + 1 - copy)});
	free(copy);
	return 0;
}
