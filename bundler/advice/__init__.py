"""Why a plan is as it is, what more would buy, what makes a recipe fit. Pure but for `asking`."""
