"""Forgetting taken apart: tables from finished runs and from features. Tasks are counted from 1 in every table.

Nothing here needs a model: a run's kept outputs and features are enough. Accuracies and shares are in percent. `head`
is a run's default head unless one is named. A table of one run is a function of (run, head, …); `of_arms` asks the
same of several.
"""

from cilkit.analysis.arms import answers_by_stage as answers_by_stage
from cilkit.analysis.arms import compare_arms as compare_arms
from cilkit.analysis.arms import curves as curves
from cilkit.analysis.arms import phases as phases
from cilkit.analysis.arms import rank_correlations as rank_correlations
from cilkit.analysis.arms import significance as significance
from cilkit.analysis.arms import stability_plasticity as stability_plasticity
from cilkit.analysis.drift import class_mean_drift as class_mean_drift
from cilkit.analysis.drift import drift_matrix as drift_matrix
from cilkit.analysis.drift import feature_drift as feature_drift
from cilkit.analysis.drift import feature_similarity as feature_similarity
from cilkit.analysis.drift import leading_angles as leading_angles
from cilkit.analysis.drift import linear_cka as linear_cka
from cilkit.analysis.flow import FATES as FATES
from cilkit.analysis.flow import class_flow as class_flow
from cilkit.analysis.flow import confusion_between_classes as confusion_between_classes
from cilkit.analysis.flow import confusion_between_tasks as confusion_between_tasks
from cilkit.analysis.flow import confusion_flow as confusion_flow
from cilkit.analysis.flow import takers as takers
from cilkit.analysis.flow import task_flow as task_flow
from cilkit.analysis.flow import task_known as task_known
from cilkit.analysis.flow import top_thefts as top_thefts
from cilkit.analysis.forgetting import accuracy_by_class as accuracy_by_class
from cilkit.analysis.forgetting import accuracy_by_group as accuracy_by_group
from cilkit.analysis.forgetting import accuracy_by_stage as accuracy_by_stage
from cilkit.analysis.forgetting import changes_by_class as changes_by_class
from cilkit.analysis.forgetting import changes_by_task as changes_by_task
from cilkit.analysis.forgetting import forgetting_by_class as forgetting_by_class
from cilkit.analysis.forgetting import forgetting_by_task as forgetting_by_task
from cilkit.analysis.forgetting import matrices as matrices
from cilkit.analysis.forgetting import matrix_table as matrix_table
from cilkit.analysis.knowing import cross_fitted as cross_fitted
from cilkit.analysis.knowing import head_and_representation as head_and_representation
from cilkit.analysis.knowing import heads_beside_probes as heads_beside_probes
from cilkit.analysis.leaning import alignment_by_stage as alignment_by_stage
from cilkit.analysis.leaning import alignment_by_task as alignment_by_task
from cilkit.analysis.leaning import calibration_by_stage as calibration_by_stage
from cilkit.analysis.leaning import linear_head as linear_head
from cilkit.analysis.leaning import norms_by_task as norms_by_task
from cilkit.analysis.leaning import recency_bias as recency_bias
from cilkit.analysis.leaning import recency_over_time as recency_over_time
from cilkit.analysis.leaning import reliability as reliability
from cilkit.analysis.leaning import weight_norms as weight_norms
from cilkit.analysis.said import of_arms as of_arms
from cilkit.probes import domain_gap as domain_gap  # found here as well: tables are asked of one module
from cilkit.probes import image_statistics as image_statistics
from cilkit.probes import probe_scores as probe_scores
from cilkit.probes import projection as projection
