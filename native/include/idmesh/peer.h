/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who the peer is: everything a door knows of it in, one identity or a refusal out. The only place where evidence is
 * weighed, for every door.
 *
 *   address      the connection's. One that nobody knows is "world", which says who the peer is not, and so
 *                contradicts every certificate.
 *   datapath     an identity that the datapath told of this connection.
 *   certificate  the SPIFFE id of the client's certificate, and when it ends, as Envoy reports them.
 *
 * All evidence that is there must agree, and what the configuration requires must be there. So a certificate left out
 * never lets its holder fall back to the address where certificates are required.
 *
 * A certificate counts only where the configuration names our trust domain. With trust_chain_verification
 * ACCEPT_UNTRUSTED, Envoy reports a certificate that nobody vouches for just as one that it verified (tried in 1.38 to
 * 1.40), so naming a trust domain is the configuration's word that its listener verifies. The generator writes both.
 *
 * SPIFFE ids: spiffe://TRUST_DOMAIN/identity/N (Cilium's) is identity N, which must exist. One of the form
 * spiffe://TRUST_DOMAIN/ns/NS/sa/SA must agree with the labels of the identity found otherwise; where the address is
 * ignored it names the one identity that has these labels. Any other id is a refusal, as are two.
 *
 * Source: SPIFFE-ID, sections 2.1 to 2.3; X509-SVID, section 2 (exactly one URI SAN).
 */
#ifndef IDMESH_PEER_H
#define IDMESH_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "idmesh/engine.h"

#define IDM_SPIFFE_ID_MAX 2048
#define IDM_TRUST_DOMAIN_MAX 255
/* Longest names Kubernetes gives: a DNS label, a DNS subdomain. */
#define IDM_NAMESPACE_MAX 63
#define IDM_ACCOUNT_MAX 253

/* What a door's configuration says of evidence (never the client). */
struct idm_peer_rules {
	uint32_t required; /* mask of idm_evidence */
	uint32_t address_ignored; /* 1: peers come through others' addresses; only certificates tell who they are */
	struct idm_bytes trust_domain; /* ours; empty: certificates are no evidence */
};

/* What is known of one connection. Borrowed. */
struct idm_peer_facts {
	uint32_t family; /* 4, 6, or 0: no address */
	uint32_t told; /* 1: the datapath told the identity */
	const uint8_t *address; /* network order */
	uint32_t told_identity;
	uint32_t told_evidence; /* mask of idm_evidence that it rests on */
	uint64_t told_domain;
	/*
	 * "END;URI SANS" as Envoy's format %DOWNSTREAM_PEER_CERT_V_END(%s)%;%DOWNSTREAM_PEER_URI_SAN% writes it: seconds
	 * since 1970, and all URI SANs, separated by commas; "" or "-" stands for what is not there. ptr NULL: not reported.
	 */
	struct idm_bytes certificate;
	uint64_t now_ms; /* only read where a certificate is */
};

enum idm_peer_answer {
	IDM_PEER_FINE = 0,
	IDM_PEER_NO_ADDRESS = 1,
	IDM_PEER_MISSING = 2,	  /* required evidence, or any */
	IDM_PEER_DISAGREE = 3,
	IDM_PEER_CERTIFICATE = 4, /* not reported as configured, not a SPIFFE id of ours, or of nobody known */
	IDM_PEER_ENDED = 5,	  /* the certificate has */
};

#define IDM_PEER_CACHE 256
#define IDM_PEER_NAMES 320
/* Identities that ns/sa ids were found to name, so that only the first request looks through all. Zero is empty. */
struct idm_peer_cache {
	struct {
		uint8_t digest[32]; /* of the identities' table */
		uint32_t identity; /* or IDM_NONE: none or several */
		uint16_t namespace_size;
		uint16_t account_size;
		char names[IDM_PEER_NAMES];
	} slots[IDM_PEER_CACHE];
};

/**
 * Weigh the evidence. Does not allocate.
 * @param[in,out] cache One a thread; only used where the address is ignored.
 * @param[out] endpoint The peer's endpoint, or IDM_NONE.
 * @return enum idm_peer_answer. Unless FINE, the peer has no evidence and the flow must be denied (172).
 */
uint32_t idm_peer_judge(const struct idm_snapshot *snapshot, const struct idm_peer_rules *rules,
			const struct idm_peer_facts *facts, struct idm_peer_cache *cache, struct idm_peer *ret,
			uint32_t *endpoint);

/* True if the rules can be kept: a well-formed trust domain, and nothing required that they rule out. */
int idm_peer_rules_valid(const struct idm_peer_rules *rules);

enum idm_spiffe_kind { IDM_SPIFFE_IDENTITY = 1, IDM_SPIFFE_ACCOUNT = 2 };
struct idm_spiffe {
	uint32_t kind;
	uint32_t identity;
	struct idm_bytes name_space; /* borrowed from the text */
	struct idm_bytes account;
};
/**
 * Read a SPIFFE id of the trust domain.
 * @return 0, or -EINVAL: not a SPIFFE id, of another trust domain, or of a form that names nobody here.
 */
int idm_spiffe_parse(struct idm_bytes text, struct idm_bytes trust_domain, struct idm_spiffe *ret);

#endif
