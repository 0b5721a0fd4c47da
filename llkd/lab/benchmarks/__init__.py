"""What LLKD's speed is measured against: ratios in one run, with what a user would use instead."""
