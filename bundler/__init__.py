"""bundler: a declarative build system for offline AI bundles.

This module stays empty of imports: the station, which runs at the far end, lives in the same
package and must not pull in the build side.
"""

__version__ = "0.1.0"
