"""Tables in, figures out: one house style (`plotstyle`), units on every axis, no model and no torch.

Each function takes a table (or images) and returns a matplotlib Figure; `save` writes it with the table behind it.
"""

from cilkit import plotstyle as plotstyle
from cilkit.plots.bars import confusion_flow as confusion_flow
from cilkit.plots.bars import forgetting_bars as forgetting_bars
from cilkit.plots.bars import group_bars as group_bars
from cilkit.plots.bars import phase_bars as phase_bars
from cilkit.plots.curves import accuracy_curves as accuracy_curves
from cilkit.plots.curves import drift_curves as drift_curves
from cilkit.plots.curves import reliability_diagram as reliability_diagram
from cilkit.plots.forgetting import accuracy_heat_maps as accuracy_heat_maps
from cilkit.plots.forgetting import alignment as alignment
from cilkit.plots.forgetting import angle_map as angle_map
from cilkit.plots.forgetting import calibration_curves as calibration_curves
from cilkit.plots.forgetting import changes as changes
from cilkit.plots.forgetting import class_drift as class_drift
from cilkit.plots.forgetting import feature_drift as feature_drift
from cilkit.plots.forgetting import flow_maps as flow_maps
from cilkit.plots.forgetting import head_and_representation as head_and_representation
from cilkit.plots.forgetting import heads_beside_probes as heads_beside_probes
from cilkit.plots.forgetting import recency_curves as recency_curves
from cilkit.plots.forgetting import theft_bars as theft_bars
from cilkit.plots.forgetting import weight_norms as weight_norms
from cilkit.plots.images import contact_sheet as contact_sheet
from cilkit.plots.images import domain_scatter as domain_scatter
from cilkit.plots.images import histograms as histograms
from cilkit.plots.matrices import accuracy_heat_map as accuracy_heat_map
from cilkit.plots.matrices import class_accuracy_map as class_accuracy_map
from cilkit.plots.matrices import confusion_map as confusion_map
from cilkit.plots.matrices import score_map as score_map
from cilkit.plots.matrices import similarity_map as similarity_map
from cilkit.plots.points import accuracy_against_bytes as accuracy_against_bytes
from cilkit.plots.points import arms_comparison as arms_comparison
from cilkit.plots.standing import gap_scatter as gap_scatter
from cilkit.plots.standing import paired_differences as paired_differences
from cilkit.plots.standing import stability_plasticity as stability_plasticity
from cilkit.plots.stories import mind_changes as mind_changes
from cilkit.plotstyle import save as save
