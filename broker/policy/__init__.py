"""May they: Cedar policies over a complete slice of the facts, where an error is a deny."""
