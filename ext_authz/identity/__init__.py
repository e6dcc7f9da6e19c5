# SPDX-License-Identifier: Apache-2.0
"""Label sets to identities, addresses to identities, selectors over both."""
